// What a disk of the embedded machine keeps its bytes in.
import { DEFAULT_BLK_SIZE, type MediumOptions, VirtioFault } from "@virtio/core";
import { type BlockBackend, MemoryBackend } from "./block-backend.js";

/** Opens the image file of a medium. */
export type OpenImage = (medium: MediumOptions) => Promise<BlockBackend>;

/**
 * The backend of a disk: an image file, or memory.
 * @param open - undefined where there are no files
 * @throws VirtioFault UNSUPPORTED, and what `open` throws
 */
export async function openMedium(
  medium: MediumOptions,
  open: OpenImage | undefined,
): Promise<BlockBackend> {
  const { file, size = DEFAULT_BLK_SIZE, readonly: readOnly = false } = medium;
  if (file === undefined) return new MemoryBackend(size, { readOnly });
  if (open === undefined)
    throw new VirtioFault(
      "UNSUPPORTED",
      `${file}: this machine was made without a way to open files`,
    );
  return open(medium);
}
