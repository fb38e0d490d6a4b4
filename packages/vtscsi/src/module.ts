// vtscsi as a kernel module.
import type { KernelModule } from "@virtio/core";
import { vtscsi } from "./vtscsi.js";

/** `virtio_scsi_load="YES"`, `device virtio_scsi`. FreeBSD's needs `cam`, too: here that is part of this driver. */
export const kernelModule: KernelModule = {
  file: "virtio_scsi",
  name: "virtio_scsi",
  version: 1,
  depends: ["virtio"],
  drivers: [vtscsi()],
  busDrivers: [],
};
