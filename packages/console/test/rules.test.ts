// The clauses of virtio 1.4 §5.3.6, as the rule book of the device sees them kept, and those that no device sees.
import type { DmaMemory, Virtqueue } from "@virtio/core";
import { DmaWindow } from "@virtio/core";
import { beforeAll, describe, expect, it } from "vitest";
import { ControlQueue } from "../src/control-queue.js";
import { TransmitQueue } from "../src/transmit-queue.js";
import { type Bench, type BenchOptions, bench, pattern, read, until, write } from "./attached.js";

/** Everything that a driver does with a device of two ports. */
async function ride(options: BenchOptions): Promise<Bench> {
  const made = await bench({
    ports: [{ console: true }, { name: "serial", size: { cols: 80, rows: 25 } }],
    ...options,
  });
  const { device, host } = made;
  for (const port of device.ports) {
    const end = host.port(port.id);
    const reading = read(end.readable, 70_000);
    await write(port.writable, pattern(70_000));
    await reading;
    const coming = read(port.readable, 70_000);
    await write(end.writable, pattern(70_000));
    await coming;
    await port.close();
  }
  if (device.maxPorts > 1) {
    host.unplug(1);
    await until(() => device.port(1) === undefined);
  }
  await device.detach();
  return made;
}

const kept: readonly (readonly [clause: string, what: string])[] = [
  ["CONSOLE-OP-1", "puts no readable buffer into a receive queue"],
  ["CONSOLE-OP-2", "puts no writable buffer into a transmit queue"],
  ["CONSOLE-MP-1", "says DEVICE_READY before anything else"],
  ["CONSOLE-MP-3", "answers CONSOLE_PORT with PORT_OPEN"],
  ["CONSOLE-MP-4", "opens a console port with value 1"],
];

const legacy: typeof kept = [
  ["CONSOLE-LEGACY-1", "writes control messages in its own byte order"],
  ["CONSOLE-FRAME-LEGACY-1", "has each control message in one descriptor"],
];

for (const [name, options, clauses] of [
  ["split rings", {}, kept],
  ["packed rings", { packed: true }, kept],
  [
    "a legacy device without ANY_LAYOUT",
    { legacy: "on", features: { ANY_LAYOUT: false } },
    [...kept, ...legacy],
  ],
] as const satisfies readonly (readonly [string, BenchOptions, typeof kept])[])
  describe(`vtcon on ${name}`, () => {
    let seen: Bench;
    beforeAll(async () => {
      seen = await ride({ ...options, keep: true });
      await seen.machine.close();
    });

    for (const [clause, what] of clauses)
      it(`${what} [${clause}]`, () => {
        expect(seen.rules.kept(clause)).toBeGreaterThan(0);
        expect(seen.rules.violations.filter((violation) => violation.clause === clause)).toEqual(
          [],
        );
      });

    it("breaks no rule at all", () => {
      expect(seen.rules.violations).toEqual([]);
    });
  });

it("takes a port that is nominated for a console: its bytes wait for nobody at the other end [CONSOLE-MP-2]", async () => {
  const { device, host } = await bench({
    ports: [{ console: true, open: false }, { open: false }],
  });
  expect(device.ports.map((port) => [port.console, port.opened])).toEqual([
    [true, true],
    [false, false],
  ]);
  expect(device.ports.map((port) => port.transmit(new Uint8Array(3)))).toEqual([3, 0]);
  await until(() => host.port(0).discarded === 3);
});

it("reads the configuration of a legacy device in its own byte order [CONSOLE-CFG-LEGACY-1]", async () => {
  const { device, rules } = await bench({
    legacy: "on",
    ports: [{ size: { cols: 0x1234, rows: 0x5678 } }],
    maxPorts: 7,
  });
  expect([device.size, device.maxPorts]).toEqual([{ cols: 0x1234, rows: 0x5678 }, 7]);
  await device.detach();
  expect(rules.violations).toEqual([]);
});

/** A queue whose device takes everything at once and says nonsense of lengths. */
class Taking {
  readonly size = 8;
  readonly usedLength = 0xdead;
  readonly broken = null;
  onUsed: (() => void) | null = null;
  readonly #cookies: number[] = [];
  enqueueReadable(cookie: number): number {
    this.#cookies.push(cookie);
    return 0;
  }
  enqueueWritable(): number {
    return 0;
  }
  dequeue(): number {
    return this.#cookies.shift() ?? -1;
  }
  notify(): void {}
  enableInterrupt(): boolean {
    return false;
  }
}

it("looks at no used length of transmit queues [CONSOLE-LEGACY-2]", async () => {
  const memory: DmaMemory = new DmaWindow(new ArrayBuffer(1 << 20));
  const gate = { open: true };
  const queue = new TransmitQueue(new Taking() as unknown as Virtqueue, memory, gate);
  for (let n = 0; n < 3; n++) expect(queue.transmit(pattern(3000), 0)).toBe(3000);
  expect([queue.pending, queue.transmitted]).toEqual([0, 9000]);

  const control = new ControlQueue({
    receive: new Taking() as unknown as Virtqueue,
    transmit: new Taking() as unknown as Virtqueue,
    ...{ memory, gate, device: "vtcon0", onMessage: () => {}, onShort: () => {} },
    tasks: {
      now: () => 0,
      enqueue: (task) => queueMicrotask(task),
      callout: () => ({ stop: () => {} }),
    },
  });
  control.start();
  const sent = control.send(0, 0, 1);
  await control.settled();
  await sent;
});
