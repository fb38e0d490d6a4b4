import { resolve } from "node:path";
import { type MediumOptions, VirtioFault } from "@virtio/core";
import type { BlockBackend } from "../block-backend.js";
import { FileBackend } from "./file-backend.js";

export { FileBackend } from "./file-backend.js";
export { openNetBackend } from "./net-backends.js";
export { StreamBackend } from "./stream-backend.js";
export { TapBackend } from "./tap-backend.js";

/**
 * Opens the image file of a medium: what `embedded({ open })` asks for.
 * @param cwd - folder that relative paths are relative to
 * @throws VirtioFault as FileBackend.open, and UNSUPPORTED for a format that is not raw
 */
export async function openImage(medium: MediumOptions, cwd: string): Promise<BlockBackend> {
  const { file = "", format = "raw", readonly = false } = medium;
  if (format !== "raw")
    throw new VirtioFault(
      "UNSUPPORTED",
      `${file}: the embedded machine reads raw images; ${format} needs --machine qemu`,
    );
  return FileBackend.open(resolve(cwd, file), { readOnly: readonly, name: file });
}
