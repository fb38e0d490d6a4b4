// The addresses of interfaces, and how one is announced.
import { MAC_SIZE } from "@virtio/core/net";
import { BROADCAST_MAC, parseMac } from "@virtio/packets";

/** What QEMU sends for a guest that it moved: RARP, request reverse. */
const RARP = 0x8035;

/** Neither a group nor nothing. */
export function isUnicast(mac: Uint8Array): boolean {
  return ((mac[0] as number) & 1) === 0 && mac.some((byte) => byte !== 0);
}

/** For a device that has none: locally administered (§5.1.4.2), as FreeBSD makes it. */
export function localAddress(): Uint8Array {
  const mac = crypto.getRandomValues(new Uint8Array(MAC_SIZE));
  mac[0] = 0xb2;
  return mac;
}

/** A frame by which switches learn where an address is (RFC 903). */
export function rarp(mac: Uint8Array): Uint8Array {
  const frame = new Uint8Array(60);
  frame.set(parseMac(BROADCAST_MAC), 0);
  frame.set(mac, 6);
  frame.set([RARP >>> 8, RARP & 0xff, 0, 1, 8, 0, 6, 4, 0, 3], 12);
  frame.set(mac, 22);
  frame.set(mac, 32);
  return frame;
}
