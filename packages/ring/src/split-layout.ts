// Where the three parts of a split virtqueue lie (virtio 1.4 §2.7).
import { availRingSize, DESCRIPTOR_SIZE, usedRingSize } from "@virtio/core/ring";

/** Offsets of the parts from the start of one contiguous piece of memory, and its length. Bytes. */
export interface SplitLayout {
  readonly descriptors: number;
  readonly available: number;
  readonly used: number;
  readonly length: number;
}

/**
 * The layout that FreeBSD allocates: descriptor table, available ring, then the used ring at the next multiple of `align`
 * (4096 over PCI).
 */
export function splitLayout(size: number, align: number): SplitLayout {
  const available = size * DESCRIPTOR_SIZE;
  const used = Math.ceil((available + availRingSize(size)) / align) * align;
  return { descriptors: 0, available, used, length: used + usedRingSize(size) };
}
