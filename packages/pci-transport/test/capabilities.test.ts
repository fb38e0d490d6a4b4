import { PciCapability, PciRegister, PciStatus, VirtioCapability } from "@virtio/core/pci";
import { describe, expect, it } from "vitest";
import { readCapabilities } from "../src/capabilities.js";

/** Configuration space with these bytes at these places, and a list that begins at 0x40. */
const space = (parts: Readonly<Record<number, readonly number[]>>, first = 0x40): Uint8Array => {
  const bytes = new Uint8Array(256);
  bytes[PciRegister.STATUS] = PciStatus.CAPABILITIES;
  bytes[PciRegister.CAPABILITIES] = first;
  for (const [at, part] of Object.entries(parts)) bytes.set(part, Number(at));
  return bytes;
};

const le32 = (value: number): number[] => [0, 8, 16, 24].map((shift) => (value >>> shift) & 0xff);
const virtio = (type: number, length: number, bar = 4, rest: readonly number[] = []): number[] => [
  PciCapability.VENDOR,
  0,
  length,
  type,
  bar,
  7,
  0,
  0,
  ...le32(0x1000),
  ...le32(0x40),
  ...rest,
];

describe("capabilities", () => {
  it.each([
    [0x00, { vectors: 1, wide: false, masking: false }],
    [0x80, { vectors: 1, wide: true, masking: false }],
    [0x18a, { vectors: 32, wide: true, masking: true }],
  ])("knows the layout of MSI from its control word %i", (control, layout) => {
    const { msi } = readCapabilities(
      space({ 64: [PciCapability.MSI, 0, control & 0xff, control >> 8] }),
    );
    expect(msi).toEqual({ at: 0x40, ...layout });
  });

  it.each([
    ["with more messages than there are", 0x40, 0x0c, 0],
    ["cut off by the end of configuration space", 0xf0, 0x80, 1],
  ])("passes MSI over %s", (_, at, low, high) => {
    const bytes = space({ [at]: [PciCapability.MSI, 0, low, high] }, at);
    expect(readCapabilities(bytes).msi).toBeNull();
  });

  it("knows a shared memory region beyond 4 GiB, and its id", () => {
    const { sharedMemory, structures } = readCapabilities(
      space({ 64: virtio(VirtioCapability.SHARED_MEMORY, 24, 2, [...le32(1), ...le32(2)]) }),
    );
    expect(structures).toEqual([]);
    expect(sharedMemory).toEqual([
      { at: 0x40, id: 7, bar: 2, offset: 0x1_0000_1000, length: 0x2_0000_0040 },
    ]);
  });

  it("passes a shared memory region over that no BAR can hold", () => {
    const huge = virtio(VirtioCapability.SHARED_MEMORY, 24, 2, [...le32(-1), ...le32(-1)]);
    expect(readCapabilities(space({ 64: huge })).sharedMemory).toEqual([]);
  });

  it("knows data of a vendor's own", () => {
    const { vendorData } = readCapabilities(
      space({ 64: [PciCapability.VENDOR, 0, 8, VirtioCapability.VENDOR, 0xf4, 0x1a, 1, 2] }),
    );
    expect(vendorData).toEqual([{ at: 0x40, length: 8, vendor: 0x1af4 }]);
  });

  it("takes the configuration access window wherever it was last pointed at", () => {
    const { structures } = readCapabilities(space({ 64: virtio(VirtioCapability.PCI, 20, 0xff) }));
    expect(structures.map(({ at, type }) => [at, type])).toEqual([[0x40, VirtioCapability.PCI]]);
  });

  it.each([
    ["a reserved type", 0x40, virtio(6, 64)],
    ["a reserved BAR", 0x40, virtio(VirtioCapability.COMMON, 16, 6)],
    ["one shorter than its type", 0x40, virtio(VirtioCapability.NOTIFY, 16)],
    ["one cut off by the end", 0xf4, virtio(VirtioCapability.COMMON, 16).slice(0, 12)],
  ])("passes %s over", (_, at, bytes) => {
    expect(readCapabilities(space({ [at]: bytes }, at)).structures).toEqual([]);
  });

  it("takes each capability once though the list loops", () => {
    const looping = virtio(VirtioCapability.COMMON, 16);
    looping[1] = 0x40;
    expect(readCapabilities(space({ 64: looping })).structures).toHaveLength(1);
  });

  it("ends where the list leaves its part of configuration space", () => {
    const leaving = virtio(VirtioCapability.COMMON, 16);
    leaving[1] = 0x10;
    expect(readCapabilities(space({ 64: leaving })).structures).toHaveLength(1);
    expect(readCapabilities(space({ 16: leaving }, 0x10)).structures).toEqual([]);
  });
});
