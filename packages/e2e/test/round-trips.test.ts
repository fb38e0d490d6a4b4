// What an attach costs where each turn is a message on a socket: counted at the socket itself.
import { Socket } from "node:net";
import { attach, probe } from "@virtio/pci-transport";
import { blk, qemu } from "@virtio/qemu";
import { vtblk } from "@virtio/vtblk";
import { describe, expect, it, vi } from "vitest";
import { hasQemu } from "./machines.js";

const MOST = 15;

describe.skipIf(!hasQemu)("an attach on QEMU (needs QEMU)", () => {
  for (const interrupts of ["intx", "msix"] as const)
    for (const legacy of ["off", "on"] as const)
      it(`takes at most ${MOST} round trips: ${interrupts}, legacy=${legacy}`, async () => {
        const machine = await qemu({ devices: [blk({ size: 1 << 20, legacy })], interrupts });
        const [node] = await probe(machine.buses[0].bus);
        if (node === undefined) throw new Error("no device");
        const writes = vi.spyOn(Socket.prototype, "write");
        // Each write is one turn's accesses. The doorbell of GET_ID is among them, though nobody awaits it.
        await attach(node, vtblk());
        const messages = writes.mock.calls.length;
        writes.mockRestore();
        await machine.close();
        expect(messages).toBeGreaterThan(8);
        expect(messages).toBeLessThanOrEqual(MOST + 1);
      });

  it("of five devices at once is a matter of milliseconds", async () => {
    const machine = await qemu({
      devices: Array.from({ length: 5 }, () => blk({ size: 1 << 20 })),
    });
    const start = performance.now();
    const nodes = await probe(machine.buses[0].bus);
    const found = performance.now();
    const disks = await Promise.all(
      nodes.map((node, unit) => attach(node, vtblk(), { unit, name: `vtblk${unit}` })),
    );
    const end = performance.now();
    await machine.close();
    expect(disks).toHaveLength(5);
    console.log(
      `five devices attached ${(end - start).toFixed(1)} ms after QMP was ready: probe ${(found - start).toFixed(1)}, attach ${(end - found).toFixed(1)}`,
    );
  });
});
