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

  /** What an attach to the device with these bytes says. */
  const refusal = async (bytes: readonly (readonly [number, number])[]): Promise<string> => {
    const machine = await embedded({ devices: ["blk,size=1m"] });
    const [node] = await probe(tampered(machine, { bytes: new Map(bytes) }));
    if (node === undefined) throw new Error("not found");
    const error = await attach(node, nullDriver()).then(() => null, String);
    await machine.close();
    return error ?? "nothing";
  };

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

  const distorted: readonly (readonly [
    what: string,
    bytes: readonly (readonly [number, number])[],
    says: string,
  ])[] = [
    [
      "a structure that is too short [PCI-CAP-7]",
      [[FIRST + 12, 0x30]],
      "cap COMMON_CFG struct length 48 less than min 56",
    ],
    [
      "a structure that is not aligned",
      [[FIRST + 8, 2]],
      "cap COMMON_CFG struct offset 2 not aligned to 4",
    ],
    [
      "a structure outside its BAR",
      [[FIRST + 9, 0x40]],
      "cap COMMON_CFG struct of 56 bytes at 16384 is not inside BAR 4 of 16384",
    ],
    [
      "a structure whose end is past 4 GiB",
      [8, 9, 10, 11].map((i) => [FIRST + i, i === 8 ? 0xf8 : 0xff] as const),
      "cap COMMON_CFG struct of 56 bytes at 4294967288 is not inside BAR 4 of 16384",
    ],
    [
      "a structure in the upper half of a 64-bit BAR",
      [[FIRST + 4, 5]],
      "cannot find cap COMMON_CFG resource: there is no BAR 5",
    ],
    [
      "a BAR that is too small",
      [0x04, 0xf0, 0xff, 0xff].map((byte, i) => [PciRegister.BAR0 + 16 + i, byte] as const),
      "cap NOTIFY_CFG struct of 2 bytes at 12288 is not inside BAR 4 of 4096",
    ],
    ["a cut-off capability", [[FIRST + 2, 12]], "cannot find COMMON_CFG capability"],
    [
      "a capability cut off by the end of configuration space",
      [
        [PciRegister.CAPABILITIES, 0xf4],
        [0xf4, PciCapability.VENDOR],
        [0xf5, 0],
        [0xf6, 16],
        [0xf7, 1],
      ],
      "cannot find COMMON_CFG capability",
    ],
    ["a list that loops at once", [[FIRST + 1, FIRST]], "cannot find NOTIFY_CFG capability"],
    ["a list that loops later", [[SECOND + 1, FIRST]], "cannot find NOTIFY_CFG capability"],
    [
      "a list that begins in the header",
      [[PciRegister.CAPABILITIES, 0x08]],
      "cannot find COMMON_CFG capability",
    ],
    ["no list", [[PciRegister.STATUS, 0]], "cannot find COMMON_CFG capability"],
  ];
  for (const [what, bytes, says] of distorted)
    it(`says what is wrong with ${what}`, async () => {
      expect(await refusal(bytes)).toBe(`VirtioFault: null0: ${says}`);
    });
});
