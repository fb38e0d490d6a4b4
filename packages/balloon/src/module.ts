// vtballoon as a kernel module.
import type { KernelModule } from "@virtio/core";
import { vtballoon } from "./vtballoon.js";

/** `virtio_balloon_load="YES"`, `device virtio_balloon`. */
export const kernelModule: KernelModule = {
  file: "virtio_balloon",
  name: "virtio_balloon",
  version: 1,
  depends: ["virtio"],
  drivers: [vtballoon()],
  busDrivers: [],
};
