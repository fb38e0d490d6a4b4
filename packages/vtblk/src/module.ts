// vtblk as a kernel module.
import type { KernelModule } from "@virtio/core";
import { vtblk } from "./vtblk.js";

/** `virtio_blk_load="YES"`, `device virtio_blk`. */
export const kernelModule: KernelModule = {
  file: "virtio_blk",
  name: "virtio_blk",
  version: 1,
  depends: ["virtio"],
  drivers: [vtblk()],
  busDrivers: [],
};
