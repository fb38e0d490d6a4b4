// vtcon on the embedded machine: bytes both ways on every kind of device, and the control protocol as a person sees it.
import { describe, expect, it } from "vitest";
import { type BenchOptions, bench, pattern, read, write } from "./attached.js";

const kinds: readonly (readonly [name: string, options: BenchOptions])[] = [
  ["split rings", {}],
  ["packed rings", { packed: true }],
  ["split rings without EVENT_IDX", { eventIdx: false }],
  ["a legacy device", { legacy: "on" }],
  ["a transitional device", { legacy: "transitional" }],
  ["rings of 4 descriptors", { queueSize: 4 }],
];

for (const [name, options] of kinds)
  describe(`vtcon on ${name}`, () => {
    it("carries bytes both ways on a single port, in order, more than its buffers hold", async () => {
      const { device, host, rules, published } = await bench(options);
      const [port] = device.ports;
      const [end] = host.ports;
      if (port === undefined || end === undefined) throw new Error("no port");
      expect([port.name, port.id, port.kind, published]).toEqual(["ttyV0.0", 0, "port", [port]]);
      const out = pattern(150_000, 1);
      const into = pattern(150_000, 2);
      const [seen, got] = await Promise.all([
        read(end.readable, out.length),
        read(port.readable, into.length),
        write(port.writable, out),
        write(end.writable, into),
      ]);
      expect(Buffer.compare(seen, out)).toBe(0);
      expect(Buffer.compare(got, into)).toBe(0);
      await device.detach();
      expect(rules.violations).toEqual([]);
    });

    it("carries bytes both ways on each of several ports", async () => {
      const { device, host, rules, lines } = await bench({
        ...options,
        ports: [{ console: true }, { name: "org.test.1" }, { id: 5, name: "org.test.5" }],
      });
      expect(
        device.ports.map(({ name, alias, console, connected }) => [
          name,
          alias,
          console,
          connected,
        ]),
      ).toEqual([
        ["ttyV0.0", "", true, true],
        ["ttyV0.1", "org.test.1", false, true],
        ["ttyV0.5", "org.test.5", false, true],
      ]);
      await Promise.all(
        device.ports.map(async (port) => {
          const end = host.port(port.id);
          const out = pattern(80_000, 2 * port.id + 1);
          const into = pattern(80_000, 2 * port.id + 2);
          const [seen, got] = await Promise.all([
            read(end.readable, out.length),
            read(port.readable, into.length),
            write(port.writable, out),
            write(end.writable, into),
          ]);
          expect([port.id, Buffer.compare(seen, out), Buffer.compare(got, into)]).toEqual([
            port.id,
            0,
            0,
          ]);
        }),
      );
      await device.detach();
      expect(lines).toEqual([]);
      expect(rules.violations).toEqual([]);
    });
  });

it("loses and reorders nothing whatever the order of work, the sizes of pieces and of rings", async () => {
  const seed = Number(process.env["VIRTIO_TEST_SEED"] ?? Date.now() >>> 0);
  let state = seed | 1;
  const random = (n: number): number => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * n);
  };
  /** The same bytes in pieces, each when the one before was taken. */
  const pieces = async (writable: WritableStream<Uint8Array>, bytes: Uint8Array): Promise<void> => {
    for (let at = 0; at < bytes.length; ) {
      const next = Math.min(bytes.length, at + 1 + random([10, 3000, 20_000][random(3)] as number));
      await write(writable, bytes.subarray(at, next));
      at = next;
    }
  };
  for (let round = 0; round < 6; round++) {
    const { device, host, machine, rules } = await bench({
      seed: random(2 ** 30),
      packed: random(2) === 0,
      eventIdx: random(3) > 0,
      queueSize: [2, 8, 64][random(3)] as number,
      ports: Array.from({ length: 1 + random(3) }, (_, id) => ({ id, console: id === 0 })),
    });
    await Promise.all(
      device.ports.map(async (port) => {
        const end = host.port(port.id);
        const out = pattern(1 + random(40_000), round + 1);
        const into = pattern(1 + random(40_000), round + 100);
        const [seen, got] = await Promise.all([
          read(end.readable, out.length),
          read(port.readable, into.length),
          pieces(port.writable, out),
          pieces(end.writable, into),
        ]);
        expect([`seed ${seed}`, Buffer.compare(seen, out), Buffer.compare(got, into)]).toEqual([
          `seed ${seed}`,
          ...[0, 0],
        ]);
      }),
    );
    await device.detach();
    await machine.close();
    expect([`seed ${seed}`, rules.violations]).toEqual([`seed ${seed}`, []]);
  }
});
