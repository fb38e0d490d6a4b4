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
      const out = pattern(200_000, 1);
      const into = pattern(200_000, 2);
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
          const out = pattern(100_000, 2 * port.id + 1);
          const into = pattern(100_000, 2 * port.id + 2);
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
