import { DeviceType } from "@virtio/core";
import { PciCapability, PciRegister } from "@virtio/core/pci";
import { embedded } from "@virtio/hypervisor";
import { describe, expect, it } from "vitest";
import { attach, probe } from "../src/index.js";
import { nullDriver } from "./null-driver.js";
import { pciBus, tampered } from "./tampered-bus.js";

// The embedded machine lays its capabilities out one after the other from 0x40 on, 16 or 20 bytes each, common first.
const FIRST = 0x40;
const SECOND = 0x50;

/** Bytes of a vendor capability at `at`. */
const capability = (
  at: number,
  next: number,
  type: number,
  bar: number,
  offset: number,
  length: number,
  capLength = 16,
): [number, number][] =>
  [PciCapability.VENDOR, next, capLength, type, bar, 0, 0, 0, ...le32(offset), ...le32(length)].map(
    (byte, i) => [at + i, byte],
  );
const le32 = (value: number): number[] => [0, 8, 16, 24].map((shift) => (value >>> shift) & 0xff);

describe("probe", () => {
  it("finds devices in slot order, places their BARs apart and masters the bus", async () => {
    const machine = await embedded({ devices: ["blk,size=1m", "blk,size=1m", "blk,size=1m"] });
    const nodes = await probe(pciBus(machine));
    expect(nodes.map((node) => [node.type, node.location])).toEqual([
      [DeviceType.BLOCK, "pci0:0:1:0"],
      [DeviceType.BLOCK, "pci0:0:2:0"],
      [DeviceType.BLOCK, "pci0:0:3:0"],
    ]);
    expect(nodes[0]?.description).toBe("VirtIO PCI (modern) Block adapter");
    expect(nodes[0]?.resources).toMatch(
      /^mem 0xe0000000-0xe0000fff,0xe0004000-0xe0007fff irq 21 at device 1\.0$/,
    );
    const ranges = nodes.flatMap((node) =>
      [...node.resources.matchAll(/0x(\w+)-0x(\w+)/g)].map(
        ([, from = "", to = ""]) => [Number.parseInt(from, 16), Number.parseInt(to, 16)] as const,
      ),
    );
    for (const [i, [from, to]] of ranges.entries())
      for (const [otherFrom, otherTo] of ranges.slice(i + 1))
        expect(to < otherFrom || otherTo < from).toBe(true);
    const [fn] = await pciBus(machine).functions();
    expect((await fn?.read(PciRegister.COMMAND, 2)) ?? 0).toBe(6);
    await machine.close();
  });

  it("leaves placed BARs where they are", async () => {
    const machine = await embedded({ devices: ["blk,size=1m"] });
    const [first] = await probe(pciBus(machine));
    const [second] = await probe(pciBus(machine));
    expect(second?.resources).toBe(first?.resources);
    await machine.close();
  });

  const binds = async (
    bytes: readonly (readonly [number, number])[],
    attaches = true,
  ): Promise<void> => {
    const machine = await embedded({ devices: ["blk,size=1m"] });
    const [node] = await probe(tampered(machine, { bytes: new Map(bytes) }));
    if (node === undefined) throw new Error("not found");
    if (attaches) expect(await (await attach(node, nullDriver())).flush()).toBe(0);
    await machine.close();
  };
  const isNoDevice = async (bytes: readonly (readonly [number, number])[]): Promise<void> => {
    const machine = await embedded({ devices: ["blk,size=1m"] });
    expect(await probe(tampered(machine, { bytes: new Map(bytes) }))).toEqual([]);
    await machine.close();
  };

  it("binds to the modern id, whatever revision and subsystem [PCI-DISC-1] [PCI-DISC-3] [PCI-DISC-4]", async () => {
    await binds([
      [PciRegister.REVISION_ID, 0x7f],
      [PciRegister.SUBSYSTEM_ID, 0x55],
      [PciRegister.SUBSYSTEM_VENDOR_ID, 0x99],
    ]);
  });

  it("binds to the transitional id of a device with modern structures, its type from the subsystem id [PCI-DISC-2]", async () => {
    await binds([
      [PciRegister.DEVICE_ID, 0x01],
      [PciRegister.DEVICE_ID + 1, 0x10],
      [PciRegister.SUBSYSTEM_ID, 2],
      [PciRegister.SUBSYSTEM_ID + 1, 0],
    ]);
  });

  it("does not bind to another vendor or an id outside the range", async () => {
    await isNoDevice([[PciRegister.VENDOR_ID, 0x86]]);
    await isNoDevice([[PciRegister.DEVICE_ID, 0x80]]);
    await isNoDevice([[PciRegister.DEVICE_ID + 1, 0x0f]]);
  });

  // A list of our own at 0xa0, in front of the real one.
  const before = (extra: [number, number][]): [number, number][] => [
    [PciRegister.CAPABILITIES, 0xa0],
    ...extra,
  ];

  it("ignores capabilities of a reserved type [PCI-CAP-1]", () =>
    binds(before(capability(0xa0, FIRST, 0x77, 4, 0, 64))));
  it("ignores capabilities with a reserved BAR [PCI-CAP-4]", () =>
    binds(before(capability(0xa0, FIRST, 1, 6, 0, 64))));
  it("uses the first usable structure of a type [PCI-CAP-2]", async () => {
    // A common configuration that is not aligned, then one outside its BAR: the third is the first of use.
    await binds(
      before([
        ...capability(0xa0, 0xb0, 1, 4, 2, 64),
        ...capability(0xb0, FIRST, 1, 4, 0x4000, 64),
      ]),
    );
  });
  it("accepts a capability longer than its definition [PCI-CAP-3]", () => binds([[FIRST + 2, 64]]));
  it("handles a length beyond the BAR [PCI-CAP-6]", () =>
    binds([
      [FIRST + 14, 0xff],
      [FIRST + 15, 0x7f],
    ]));
  it("refuses a structure that is too short [PCI-CAP-7]", () => isNoDevice([[FIRST + 12, 0x30]]));

  it("ends on capability lists that loop, and on ones that leave configuration space", async () => {
    await isNoDevice([[FIRST + 1, FIRST]]);
    await isNoDevice([[SECOND + 1, FIRST]]);
    await isNoDevice([[PciRegister.CAPABILITIES, 0xfc]]);
    await isNoDevice([[PciRegister.CAPABILITIES, 0x08]]);
    await isNoDevice([[PciRegister.STATUS, 0]]);
  });
});
