// virtio_pci as a kernel module.
import type { BusDriver, KernelModule } from "@virtio/core";
import { attach, virtioPci } from "./attach.js";
import { probe } from "./node.js";

const busDriver: BusDriver = {
  ...virtioPci,
  identify: async (bus, tunables) =>
    bus.kind === "pci"
      ? probe(bus.bus, { transitional: tunables.number("transitional") !== 0 })
      : [],
  attach,
};

/** `virtio_pci_load="YES"`, `device virtio_pci`. */
export const kernelModule: KernelModule = {
  file: "virtio_pci",
  name: "virtio_pci",
  version: 1,
  depends: ["virtio"],
  drivers: [],
  busDrivers: [busDriver],
};
