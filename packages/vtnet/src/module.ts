// vtnet as a kernel module.
import type { KernelModule } from "@virtio/core";
import { vtnet } from "./vtnet.js";

/** `if_vtnet_load="YES"`, `device vtnet`. */
export const kernelModule: KernelModule = {
  file: "if_vtnet",
  name: "vtnet",
  version: 1,
  depends: ["virtio"],
  drivers: [vtnet()],
  busDrivers: [],
};
