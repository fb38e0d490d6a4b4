// A frame given to a network interface.
import type { Frame, NetworkInterface } from "@virtio/core";

/**
 * Transmits a frame of one buffer or more, its queue chosen by its flow.
 * @param change - what the interface is to do with it: fields of its first buffer
 * @throws Error when it is not taken
 */
export function transmit(
  iface: NetworkInterface,
  bytes: Uint8Array,
  change: Partial<Frame> = {},
): void {
  let head: Frame | null = null;
  let tail: Frame | null = null;
  for (let at = 0; at < bytes.length; ) {
    const part = iface.allocate();
    if (part === null) throw new Error("no frame is free");
    const piece = bytes.subarray(at, at + part.room);
    part.bytes.set(piece, part.offset);
    part.length = piece.length;
    at += piece.length;
    head ??= part;
    if (tail !== null) tail.next = part;
    tail = part;
  }
  if (head === null) throw new Error("a frame without bytes");
  if (iface.transmitBurst(-1, [Object.assign(head, change)], 1) !== 1)
    throw new Error("the frame was not taken");
}
