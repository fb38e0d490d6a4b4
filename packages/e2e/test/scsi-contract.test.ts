// The Disk contract on da0: on the embedded machine and on QEMU's own virtio-scsi, by every interface and both ring formats.
import type { Machine, ScsiOptions } from "@virtio/core";
import { embedded, scsi as embeddedScsi } from "@virtio/hypervisor";
import { qemu, scsi } from "@virtio/qemu";
import { diskContract } from "@virtio/storage/contract";
import { describe, it } from "vitest";
import { hasQemu } from "./machines.js";
import { scsiBusOf } from "./scsi-bus.js";

const MIB = 1 << 20;

const cases: readonly (readonly [string, ScsiOptions])[] = [
  ["a split ring", {}],
  ["a packed ring", { packed: true, queues: 4 }],
  ["a legacy device", { legacy: "on" }],
  ["no indirect tables, a small queue", { indirect: false, queueSize: 16 }],
];

function keepsTheContract(name: string, start: () => Promise<Machine>): void {
  describe(name, () => {
    const ready = async () => {
      const machine = await start();
      const bus = await scsiBusOf(machine);
      const [disk] = bus.disks;
      if (disk === undefined) throw new Error("no disk");
      return { machine, disk };
    };
    let running: ReturnType<typeof ready>;
    it("attaches", async () => {
      running = ready();
      await running;
    });
    for (const { name: what, run } of diskContract) it(what, async () => run((await running).disk));
    it("and ends", async () => (await running).machine.close());
  });
}

describe("da0 keeps the Disk contract", () => {
  for (const [name, options] of cases) {
    keepsTheContract(`on the embedded machine, ${name}`, () =>
      embedded({ devices: [embeddedScsi({ size: 8 * MIB, ...options })] }),
    );
    describe.skipIf(!hasQemu)("(needs QEMU)", () => {
      keepsTheContract(`on QEMU, ${name}`, () =>
        qemu({ devices: [scsi({ size: 8 * MIB, ...options })] }),
      );
    });
  }
});
