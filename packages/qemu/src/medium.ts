// What a disk of QEMU's keeps its bytes in: an image, or a file in memory.
import { DEFAULT_BLK_SIZE, type MediumOptions } from "@virtio/core";
import { type Check, oneOf, onOff, type Refuse } from "./device-properties.js";
import { findImage, type Image } from "./image.js";
import type { Part } from "./parts.js";

/** An image, or bytes of memory, as QEMU is to have it. */
export interface Medium {
  readonly format: "raw" | "qcow2";
  readonly readonly: boolean;
  readonly store: Image | { readonly size: number };
}

/** Every option of a medium and of the disk that has it, and what its value must be. */
export const mediumChecks: Readonly<Record<string, Check>> = {
  file: (value) => (typeof value === "string" && value !== "" ? null : "is not a file name"),
  size: (value) =>
    Number.isSafeInteger(value) && Number(value) > 0 && Number(value) % 512 === 0
      ? null
      : "is not a positive multiple of 512",
  format: oneOf("raw", "qcow2"),
  serial: (value) =>
    typeof value === "string" && /^[\x20-\x7e]{1,20}$/.test(value)
      ? null
      : "is not 1 to 20 printable ASCII characters",
  readonly: onOff,
};

/** @throws VirtioFault INVALID for options that do not go together */
export function refuseMedium({ file, size, format }: MediumOptions, refuse: Refuse): void {
  if (file !== undefined && size !== undefined) refuse("'size' does not go with 'file'");
  if (file === undefined && format === "qcow2") refuse("format=qcow2 needs a file");
}

/**
 * Finds the medium of a disk.
 * @param device how messages call it: `blk,file=disk.img`
 * @throws VirtioFault as `findImage`
 */
export async function findMedium(
  { file, size = DEFAULT_BLK_SIZE, format = "raw", readonly = false }: MediumOptions,
  device: string,
  cwd: string,
): Promise<Medium> {
  const store = file === undefined ? { size } : await findImage(file, { device, cwd, readonly });
  return { format, readonly, store };
}

/**
 * The block node of a medium.
 * @param path of the file in memory, where it is one
 */
export function blockNode({ format, readonly, store }: Medium, name: string, path = ""): Part {
  // Nobody else can open a memfd: its lock says nothing.
  const file =
    "path" in store
      ? { driver: store.driver, filename: store.path }
      : { driver: "file", filename: path, locking: "off" };
  return {
    kind: "blockdev",
    options: {
      driver: format,
      "node-name": name,
      "read-only": readonly,
      discard: "unmap",
      file,
    },
  };
}
