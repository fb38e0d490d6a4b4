// vtblk and the whole block device of the embedded machine: what both make of resize, cache mode, wear, barriers and faults.
import type { VirtioFault } from "@virtio/core";
import { FaultBackend, MemoryBackend } from "@virtio/hypervisor";
import { virtualTime } from "@virtio/testing";
import { describe, expect, it } from "vitest";
import { bench, until } from "./attached.js";

const MIB = 1 << 20;
const sector = (fill = 0): Uint8Array => new Uint8Array(512).fill(fill);

describe("a vtbd disk on the embedded machine", () => {
  it("reads the capacity again when the device is resized, and goes on within it [BLK-OP-1]", async () => {
    const backend = new MemoryBackend(MIB);
    const { disk, machine, rules } = await bench({ backend });
    const sizes: number[] = [];
    disk.onResize((size) => sizes.push(size));
    backend.resize(2 * MIB);
    await until(() => sizes.length === 1);
    await disk.write(2 * MIB - 512, sector(7));
    backend.resize(MIB / 2);
    await until(() => sizes.length === 2);
    await expect(disk.read(MIB / 2, sector())).rejects.toMatchObject({ errno: "EINVAL" });
    await disk.read(MIB / 2 - 512, sector());
    expect(sizes).toEqual([2 * MIB, MIB / 2]);
    await machine.close();
    expect(rules.kept("BLK-OP-1")).toBeGreaterThan(0);
    expect(rules.violations).toEqual([]);
  });

  it("switches the cache mode by 0 and 1, and only where it may [BLK-OP-12]", async () => {
    for (const mode of [0, 1] as const) {
      const { disk, machine, rules, sysctl } = await bench({ driver: { writecacheMode: mode } });
      const [leaf] = sysctl.find("vtblk.writecache_mode");
      expect(leaf?.read()).toBe(mode);
      await leaf?.write?.(String(1 - mode));
      expect(leaf?.read()).toBe(1 - mode);
      await disk.flush();
      await machine.close();
      expect(rules.kept("BLK-OP-12")).toBeGreaterThan(0);
      expect(rules.violations).toEqual([]);
    }
    const { machine, rules } = await bench({
      features: { CONFIG_WCE: false },
      driver: { writecacheMode: 0 },
    });
    await machine.close();
    expect(rules.kept("BLK-OP-12")).toBe(0);
    expect(rules.violations).toEqual([]);
  });

  it("shows wear, stripes and what else the device says of itself", async () => {
    const { disk, machine, sysctl, rules } = await bench({
      lifetime: { preEolInfo: 1, estTypA: 2, estTypB: 3 },
      topology: { physicalBlockExp: 3, alignmentOffset: 1 },
    });
    const values = ["pre_eol_info", "est_typ_a", "est_typ_b"].map((name) =>
      sysctl.find(`vtblk.${name}`)[0]?.read(),
    );
    expect([...values, disk.stripeSize, disk.stripeOffset]).toEqual([1, 2, 3, 4096, 3584]);
    await machine.close();
    expect(rules.violations).toEqual([]);
  });

  it("suspends and resumes, and sets its cache mode again", async () => {
    const { disk, machine, rules, sysctl } = await bench({ driver: { writecacheMode: 0 } });
    await disk.suspend();
    const late = disk.write(0, sector(1));
    await disk.resume();
    await late;
    expect(sysctl.find("vtblk.writecache_mode")[0]?.read()).toBe(0);
    await machine.close();
    expect(rules.kept("BLK-OP-12")).toBeGreaterThan(1);
    expect(rules.violations).toEqual([]);
  });

  for (const options of [{ legacy: "on", features: { BARRIER: true } }, {}] as const)
    it(`keeps ordered writes in order, with ${JSON.stringify(options)}`, async () => {
      const memory = new MemoryBackend(MIB);
      const order: number[] = [];
      const backend = new FaultBackend(memory, ({ operation, position }) => {
        if (operation === "write") order.push(position / 512);
        // The first ones take longest.
        return new Promise((resolve) => setTimeout(resolve, order.length < 4 ? 5 : 0));
      });
      const { disk, machine, rules } = await bench({ ...options, backend });
      const ended: number[] = [];
      await Promise.all(
        Array.from({ length: 12 }, (_, i) =>
          disk.write(i * 512, sector(i), { ordered: i % 4 === 3 }).then(() => ended.push(i)),
        ),
      );
      expect(order).toEqual(Array.from({ length: 12 }, (_, i) => i));
      for (const i of [3, 7, 11]) expect(ended[i]).toBe(i);
      await machine.close();
      expect(rules.violations).toEqual([]);
    });

  it("takes a dump without one turn of the event loop, after what was in flight", async () => {
    const { disk, machine, rules } = await bench({ queues: 4 });
    const ended: number[] = [];
    const writes = Array.from({ length: 300 }, (_, i) =>
      disk.write(i * 512, sector(1)).then(() => ended.push(i)),
    );
    const dump = new Uint8Array(3 * MIB).map((_, i) => i >>> 9);
    disk.dump(512, dump);
    disk.dump(0, new Uint8Array(0));
    expect(disk.statistics).toMatchObject({ flushes: 1 });
    expect(() => disk.dump(1, dump)).toThrow("whole sectors");
    await Promise.all(writes);
    const into = new Uint8Array(MIB);
    await disk.read(2 * MIB + 512, into);
    expect(Buffer.from(into).equals(Buffer.from(dump.subarray(2 * MIB)))).toBe(true);
    await machine.close();
    expect(rules.violations).toEqual([]);
  });

  it("takes no dump while it is suspended, or once it is detached", async () => {
    const { disk, machine } = await bench();
    await disk.suspend();
    expect(() => disk.dump(0, sector())).toThrow("vtbd0: the disk takes no dump now");
    await disk.resume();
    await disk.detach();
    expect(() => disk.dump(0, sector())).toThrow("vtbd0: the disk is detached");
    await machine.close();
  });

  for (const ring of [{}, { packed: true }, { queues: 4 }, { legacy: "on" }] as const)
    it(`resets a device that never answers, and works again, on ${JSON.stringify(ring)}`, async () => {
      const passing = virtualTime();
      const backend = new FaultBackend(new MemoryBackend(MIB), ({ position }) =>
        position < 4096 ? "never" : undefined,
      );
      const { disk, machine, rules, lines } = await bench({ ...ring, backend });
      const codes: string[] = [];
      const end = ({ code }: VirtioFault): void => void codes.push(code);
      const reads = Array.from({ length: 6 }, (_, i) => disk.read(i * 512, sector()).catch(end));
      await passing(Promise.all(reads));
      expect(codes).toEqual(new Array(6).fill("TIMED_OUT"));
      expect(lines.at(-1)).toBe("a request timed out after 30 s: resetting the device");
      backend.fate = () => undefined;
      const into = sector();
      await disk.write(512, sector(5));
      await disk.read(512, into);
      expect([into[0], codes.length]).toEqual([5, 6]);
      await disk.detach();
      expect(machine.memory.available).toBe(machine.memory.buffer.byteLength);
      await machine.close();
      expect(rules.violations).toEqual([]);
    });
});
