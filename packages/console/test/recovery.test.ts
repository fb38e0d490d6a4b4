// A device that asks for a reset, and one that breaks a rule of the ring.
import { type Driver, VirtioFault, type Virtqueue } from "@virtio/core";
import { attach } from "@virtio/pci-transport";
import type { PackedQueue, SplitQueue } from "@virtio/ring";
import { describe, expect, it } from "vitest";
import { type ConsoleDevice, vtcon } from "../src/index.js";
import {
  type BenchOptions,
  bytesOf,
  machineOf,
  outcome,
  pattern,
  read,
  text,
  turns,
  until,
  write,
} from "./attached.js";

/** A console whose rings the test can break. */
async function breakable(options: BenchOptions = {}) {
  const made = await machineOf({
    ports: [{ console: true }, { name: "serial" }],
    ...options,
  });
  const { attach: plain, ...rest } = vtcon();
  let queues: readonly Virtqueue[] = [];
  const driver: Driver<ConsoleDevice> = {
    ...rest,
    attach(device, context) {
      const allocate = device.allocateQueues.bind(device);
      device.allocateQueues = async (specs) => {
        queues = await allocate(specs);
        return queues;
      };
      return plain(device, context);
    },
  };
  const lines: string[] = [];
  const device = await attach(made.node, driver, { log: (line) => lines.push(line) });
  const port = device.ports.at(-1);
  const end = made.host.ports.at(-1);
  if (port === undefined || end === undefined) throw new Error("no port");
  const fail = (code: VirtioFault["code"]): VirtioFault => {
    const fault = new VirtioFault(code, "as the test wants it");
    for (const queue of queues) (queue as PackedQueue | SplitQueue).fail(fault);
    return fault;
  };
  return { ...made, device, lines, port, end, fail };
}

describe("vtcon on a device that asks for a reset", () => {
  for (const options of [{}, { packed: true }, { ports: [{}] }] as const)
    it(`fails the write that is under way, and goes on with the same ports: ${JSON.stringify(options)}`, async () => {
      const { device, lines, port, end, fail, rules } = await breakable(options);
      const reading = read(port.readable, 5);
      await write(port.writable, pattern(60_000));
      const writing = outcome(write(port.writable, pattern(100_000)));
      await turns();
      fail("NEEDS_RESET");
      expect(await writing).toBe("NEEDS_RESET EIO");
      await until(() => end.guestOpen && port.connected);
      expect(device.ports.at(-1)).toBe(port);
      expect([lines, port.opened]).toEqual([
        ["the device needs a reset: resetting the device"],
        true,
      ]);
      end.read(new Uint8Array(70_000));
      await write(port.writable, bytesOf("again"));
      await until(() => end.readableLength >= 5);
      end.write(bytesOf("hello"));
      expect(text(await reading)).toBe("hello");
      await device.detach();
      expect([await device.closed, rules.violations]).toEqual([null, []]);
    });

  it("gives up after three resets without a byte between them", async () => {
    const { device, lines, port, fail } = await breakable();
    for (let n = 0; n < 4; n++) {
      fail("NEEDS_RESET");
      await until(() => lines.length === Math.min(n + 1, 3));
      if (n < 3) await until(() => port.connected);
    }
    expect((await device.closed)?.code).toBe("NEEDS_RESET");
    expect(await outcome(write(port.writable, bytesOf("x")))).toBe("NEEDS_RESET EIO");
    expect(device.ports).toEqual([]);
    await device.detach();
  });
});

describe("vtcon on a device that breaks a rule of the ring", () => {
  it("ends every port with that fault, once, and still detaches and gives its memory back", async () => {
    const { device, machine, node, port, fail } = await breakable();
    const reading = outcome(read(port.readable, 1));
    const opening = port.open();
    await opening;
    const fault = fail("DEVICE_MISBEHAVED");
    expect(await device.closed).toBe(fault);
    expect(await reading).toBe("DEVICE_MISBEHAVED EIO");
    expect(await outcome(port.open())).toBe("DEVICE_MISBEHAVED EIO");
    await device.suspend();
    await device.resume();
    await device.detach();
    const before = machine.memory.available;
    const again = await attach(node, vtcon());
    await again.detach();
    expect(machine.memory.available).toBe(before);
  });
});
