import { writeFileSync } from "node:fs";
import { join } from "node:path";
import type { PciFunction } from "@virtio/core";
import { PciBridgeRegister, PciRegister } from "@virtio/core/pci";
import { describe, expect, it } from "vitest";
import { hasQemu, launch, temporaryFolder, until } from "./support/machine.js";
import { openBridges, RawDevice, virtioFunctions } from "./support/raw-device.js";

const place = ({ address: { bus, device, function: fn } }: PciFunction): string =>
  `${bus}:${device}.${fn}`;

/** Primary, secondary and subordinate bus number of each bridge. */
async function numbers(functions: readonly PciFunction[]): Promise<Record<string, number[]>> {
  const found: Record<string, number[]> = {};
  for (const fn of functions)
    if (((await fn.read(PciRegister.HEADER_TYPE, 1)) & 0x7f) === 1)
      found[place(fn)] = await Promise.all([
        fn.read(PciBridgeRegister.PRIMARY_BUS, 1),
        fn.read(PciBridgeRegister.SECONDARY_BUS, 1),
        fn.read(PciBridgeRegister.SUBORDINATE_BUS, 1),
      ]);
  return found;
}

/** Block devices on files that QMP can resize; each on the bus and at the address that it says. */
function disks(folder: string, places: readonly string[]): readonly string[] {
  return places.flatMap((at, i) => {
    const file = join(folder, `${i}.img`);
    writeFileSync(file, Buffer.alloc(4096));
    return [
      ...["-blockdev", `driver=raw,node-name=n${i},file.driver=file,file.filename=${file}`],
      ...["-device", `virtio-blk-pci,drive=n${i},disable-legacy=on,${at}`],
    ];
  });
}

const q35 = {
  type: "q35",
  // A root port, a switch with two ports and a conventional bridge behind the second, and another root port.
  bridges: [
    "pcie-root-port,id=a,chassis=1,addr=8",
    "pcie-root-port,id=b,chassis=2,addr=9",
    "x3130-upstream,id=up,bus=b",
    "xio3130-downstream,id=d0,bus=up,chassis=3,addr=0",
    "xio3130-downstream,id=d1,bus=up,chassis=4,addr=1",
    "pcie-pci-bridge,id=e,bus=d1",
    "pcie-root-port,id=c,chassis=5,addr=10",
  ],
  disks: ["bus=a", "bus=d0", "bus=e,addr=3", "bus=e,addr=6", "addr=5"],
  numbers: {
    "0:8.0": [0, 1, 1],
    "0:9.0": [0, 2, 6],
    "2:0.0": [2, 3, 6],
    "3:0.0": [3, 4, 4],
    "3:1.0": [3, 5, 6],
    "5:0.0": [5, 6, 6],
    "0:16.0": [0, 7, 7],
  },
  places: ["0:5.0", "1:0.0", "4:0.0", "6:3.0", "6:6.0"],
} as const;

const pc = {
  type: "pc",
  bridges: [
    "pci-bridge,id=a,chassis_nr=1,addr=6",
    "pci-bridge,id=b,chassis_nr=2,bus=a,addr=4",
    "pci-bridge,id=c,chassis_nr=3,addr=9",
  ],
  disks: ["bus=a,addr=1", "bus=a,addr=2", "bus=b,addr=5", "bus=c,addr=1f", "addr=2"],
  numbers: { "0:6.0": [0, 1, 2], "1:4.0": [1, 2, 2], "0:9.0": [0, 3, 3] },
  places: ["0:2.0", "1:1.0", "1:2.0", "2:5.0", "3:31.0"],
} as const;

describe.skipIf(!hasQemu)("behind bridges (needs QEMU)", () => {
  it.each([q35, pc])("of a $type every function is found, and interrupts", async (machineOf) => {
    const devices = machineOf.bridges.flatMap((bridge) => ["-device", bridge]);
    const args = [...devices, ...disks(temporaryFolder(), machineOf.disks)];
    const machine = await launch({ type: machineOf.type, devices: [], args });
    const { bus } = machine.buses[0];
    const functions = await bus.functions();
    expect(await numbers(functions)).toEqual(machineOf.numbers);
    expect(await bus.functions()).toEqual(functions);
    await openBridges(functions);
    const found = await virtioFunctions(machine);
    expect(found.map(place)).toEqual(machineOf.places);
    // In which order the disks interrupt says which is where; that they are served, that the lines are right.
    const served: string[] = [];
    await Promise.all(
      found.map(async (fn) => {
        const device = await RawDevice.open(machine, fn);
        await device.start();
        await fn.interrupts.line(
          place(fn),
          device.service(() => served.push(place(fn))),
        );
      }),
    );
    for (let i = 0; i < machineOf.disks.length; i++) {
      await machine.qmp.execute("block_resize", { "node-name": `n${i}`, size: 8192 });
      await until(`disk ${i} is served`, () => served.length === i + 1);
    }
    expect([...served].sort()).toEqual([...machineOf.places].sort());
  });

  it("a walk asks an empty link for one device only", async () => {
    const machine = await launch({ devices: [], rootPorts: 3 });
    const read: number[] = [];
    const { qtest } = machine;
    const original = qtest.read.bind(qtest);
    qtest.read = (space, address, width) => {
      if (address >= 0xb010_0000 && address < 0xc000_0000) read.push((address >> 12) & 0xffff);
      return original(space, address, width);
    };
    await machine.buses[0].bus.functions();
    expect(new Set(read.map((rid) => rid & 0xffff))).toEqual(new Set([0x100, 0x200, 0x300]));
  });

  it("what another wrote into the bus numbers leads to no bus twice", async () => {
    const machine = await launch({ devices: [], rootPorts: 3 });
    const { bus } = machine.buses[0];
    const before = await bus.functions();
    const ports = before.filter(({ address }) => [1, 2, 3].includes(address.device));
    await Promise.all(
      [1, 1, 255].map((secondary, i) =>
        ports[i]?.write(PciBridgeRegister.SECONDARY_BUS, 1, secondary),
      ),
    );
    expect(await bus.functions()).toEqual(before);
    for (const port of ports) await port.write(PciBridgeRegister.SECONDARY_BUS, 1, 0);
    expect(await bus.functions()).toEqual(before);
  });
});
