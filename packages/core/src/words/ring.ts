// The words of a virtqueue: virtio 1.4 §2.6 to §2.9. Sizes and offsets in bytes; every field is little-endian.

/** Largest queue size (virtio 1.4 §2.7, §2.8). */
export const QUEUE_SIZE_MAX = 32768;

/** Flags of a descriptor (virtio 1.4 §2.7.5). */
export enum DescriptorFlag {
  /** The chain goes on at `next`. */
  NEXT = 1,
  /** Device-writable; else device-readable. */
  WRITE = 2,
  /** The descriptor refers to a table of descriptors (§2.7.5.3). */
  INDIRECT = 4,
}

/** Flag of the available ring (virtio 1.4 §2.7.6). */
export enum AvailFlag {
  NO_INTERRUPT = 1,
}

/** Flag of the used ring (virtio 1.4 §2.7.8). */
export enum UsedFlag {
  NO_NOTIFY = 1,
}

/** Flags of a descriptor in a packed ring, besides DescriptorFlag's (virtio 1.4 §2.8.1). Values of the 16-bit field. */
export enum PackedFlag {
  AVAIL = 0x80,
  USED = 0x8000,
}

/** What an end of a packed ring wants to be told, in its event suppression structure (virtio 1.4 §2.8.10). */
export enum PackedEvent {
  ENABLE = 0,
  DISABLE = 1,
  /** With EVENT_IDX: when the descriptor at `desc` is passed. */
  DESC = 2,
}

/** `struct virtq_desc` (virtio 1.4 §2.7.5): le64 addr, le32 len, le16 flags, le16 next. */
export const DESCRIPTOR_SIZE = 16;
/** Alignment of the descriptor table (virtio 1.4 §2.7). */
export const DESCRIPTOR_ALIGN = 16;
/** Alignment of the available ring (virtio 1.4 §2.7). */
export const AVAIL_ALIGN = 2;
/** Alignment of the used ring (virtio 1.4 §2.7). */
export const USED_ALIGN = 4;

/** Bytes of an event suppression structure of a packed ring (virtio 1.4 §2.8.14). */
export const EVENT_SIZE = 4;
/** Alignment of an event suppression structure (virtio 1.4 §2.8). */
export const EVENT_ALIGN = 4;

/** Bytes of the available ring: flags, idx, ring\[size\], used_event (virtio 1.4 §2.7.6). */
export const availRingSize = (size: number): number => 6 + 2 * size;
/** Bytes of the used ring: flags, idx, \{id, len\}\[size\], avail_event (virtio 1.4 §2.7.8). */
export const usedRingSize = (size: number): number => 6 + 8 * size;
