// vtblk on the legacy interface of the embedded machine's device (the legacy sections of virtio 1.4 §5.2).
import type { BlkSpec, Disk } from "@virtio/core";
import { blk, embedded, MemoryBackend, RuleBook } from "@virtio/hypervisor";
import { attach, probe } from "@virtio/pci-transport";
import { describe, expect, it } from "vitest";
import { vtblk } from "../src/index.js";

const SIZE = 3 << 20;

async function legacyDisk(
  options: Omit<BlkSpec, "kind">,
): Promise<{ disk: Disk; rules: RuleBook; content: Uint8Array; close: () => Promise<void> }> {
  const rules = new RuleBook();
  const content = new Uint8Array(SIZE);
  const machine = await embedded({
    devices: [
      blk({ legacy: "on", serial: "OLD", ...options, backend: new MemoryBackend(content) }),
    ],
    rules,
  });
  const [node] = await probe(machine.buses[0].bus);
  if (node === undefined) throw new Error("no device");
  return {
    disk: await attach(node, vtblk()),
    rules,
    content,
    close: async () => {
      await machine.close();
      expect(rules.violations).toEqual([]);
    },
  };
}

describe("vtblk on a legacy device", () => {
  it("reads its configuration in this machine's byte order [BLK-CFG-LEGACY-1]", async () => {
    const { disk, close } = await legacyDisk({});
    expect([disk.mediaSize, disk.sectorSize, disk.ident]).toEqual([SIZE, 512, "OLD"]);
    await close();
  });

  for (const features of [{}, { ANY_LAYOUT: false }] as const)
    it(`frames and encodes requests as such a device takes them, ${JSON.stringify(features)} [BLK-OP-LEGACY-1] [BLK-FRAME-LEGACY-1] [SPLIT-ENDIAN-1]`, async () => {
      const { disk, rules, content, close } = await legacyDisk({ features });
      const bytes = Uint8Array.from({ length: 70_000 - (70_000 % 512) }, (_, i) => (i * 7) & 0xff);
      await disk.write(512, bytes);
      await disk.flush();
      expect(Buffer.from(content.subarray(512, 512 + bytes.length)).equals(bytes)).toBe(true);
      const into = new Uint8Array(bytes.length);
      await disk.read(512, into);
      expect(Buffer.from(into).equals(bytes)).toBe(true);
      await close();
      for (const clause of ["BLK-OP-LEGACY-1", "SPLIT-ENDIAN-1"])
        expect([clause, rules.kept(clause)]).not.toEqual([clause, 0]);
      // What may be framed in any way is not looked at.
      if ("ANY_LAYOUT" in features) expect(rules.kept("BLK-FRAME-LEGACY-1")).toBeGreaterThan(0);
    });
});
