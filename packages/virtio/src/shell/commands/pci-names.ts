// Names that pciconf -v prints. Of vendors and devices only those that a virtual machine has.

/** By vendor id. */
export const vendorNames: Readonly<Record<number, string>> = {
  6900: "Red Hat, Inc.",
  6966: "Red Hat, Inc.",
  4660: "QEMU",
  32902: "Intel Corporation",
};

/** By vendor id and device id, eight hexadecimal digits. */
export const deviceNames: Readonly<Record<string, string>> = {
  "1af41041": "Virtio 1.0 network device",
  "1af41042": "Virtio 1.0 block device",
  "1af41043": "Virtio 1.0 console",
  "1af41044": "Virtio 1.0 RNG",
  "1af41045": "Virtio 1.0 memory balloon",
  "1af41048": "Virtio 1.0 SCSI",
  "1af41000": "Virtio network device",
  "1af41001": "Virtio block device",
  "1af41002": "Virtio memory balloon",
  "1af41003": "Virtio console",
  "1af41004": "Virtio SCSI",
  "1af41005": "Virtio RNG",
};

/** Class, and subclasses by number. */
export const classNames: Readonly<
  Record<number, readonly [name: string, subclasses: Readonly<Record<number, string>>]>
> = {
  0: ["old", { 0: "non-VGA display device", 1: "VGA-compatible display device" }],
  1: ["mass storage", { 0: "SCSI", 1: "ATA", 4: "RAID", 6: "SATA", 8: "NVM" }],
  2: ["network", { 0: "ethernet" }],
  3: ["display", { 0: "VGA" }],
  5: ["memory", { 0: "RAM" }],
  6: ["bridge", { 0: "HOST-PCI", 1: "PCI-ISA", 4: "PCI-PCI" }],
  7: ["simple comms", { 0: "UART" }],
  12: ["serial bus", { 3: "USB", 5: "SMBus" }],
};
