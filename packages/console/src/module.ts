// vtcon as a kernel module.
import type { KernelModule } from "@virtio/core";
import { vtcon } from "./vtcon.js";

/** `virtio_console_load="YES"`, `device virtio_console`. */
export const kernelModule: KernelModule = {
  file: "virtio_console",
  name: "virtio_console",
  version: 1,
  depends: ["virtio"],
  drivers: [vtcon()],
  busDrivers: [],
};
