// Addresses as text and as bytes.
import { VirtioFault } from "@virtio/core";
import { get16, put16 } from "./words.js";

/** Bytes of an IPv4 address. */
export const IPV4_SIZE = 4;
/** Bytes of an IPv6 address. */
export const IPV6_SIZE = 16;
/** All stations: `ff:ff:ff:ff:ff:ff`. */
export const BROADCAST_MAC = "ff:ff:ff:ff:ff:ff";

function invalid(what: string, text: string): VirtioFault {
  return new VirtioFault("INVALID", `not ${what}: "${text}"`);
}

/**
 * The 6 bytes of `52:54:00:12:34:56`.
 *
 * @throws VirtioFault INVALID
 */
export function parseMac(text: string): Uint8Array<ArrayBuffer> {
  if (!/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i.test(text)) throw invalid("a MAC address", text);
  return Uint8Array.from(text.split(":"), (part) => Number.parseInt(part, 16));
}

/** The MAC address at `offset`, as `52:54:00:12:34:56`. */
export function formatMac(bytes: Uint8Array, offset = 0): string {
  return Array.from(bytes.subarray(offset, offset + 6), (byte) =>
    byte.toString(16).padStart(2, "0"),
  ).join(":");
}

/**
 * The 4 bytes of `10.0.2.15`.
 *
 * @throws VirtioFault INVALID
 */
export function parseIpv4(text: string): Uint8Array<ArrayBuffer> {
  const parts = text.split(".");
  // No leading zeros: some read them as octal (RFC 6943 §3.1.1).
  if (parts.length !== 4 || parts.some((part) => !/^(0|[1-9]\d{0,2})$/.test(part) || +part > 255)) {
    throw invalid("an IPv4 address", text);
  }
  return Uint8Array.from(parts, Number);
}

/** The IPv4 address at `offset`, as `10.0.2.15`. */
export function formatIpv4(bytes: Uint8Array, offset = 0): string {
  return bytes.subarray(offset, offset + IPV4_SIZE).join(".");
}

/**
 * The 16 bytes of `fec0::2`, in any form of RFC 4291 §2.2; a zone is not taken.
 *
 * @throws VirtioFault INVALID
 */
export function parseIpv6(text: string): Uint8Array<ArrayBuffer> {
  const halves = text.split("::");
  const head = groups(halves[0] ?? "", text, halves.length === 1);
  const tail = groups(halves[1] ?? "", text, true);
  const count = head.length + tail.length;
  if (halves.length > 2 || (halves.length === 2 ? count > 7 : count !== 8)) {
    throw invalid("an IPv6 address", text);
  }
  const bytes = new Uint8Array(IPV6_SIZE);
  head.forEach((group, at) => {
    put16(bytes, at * 2, group);
  });
  tail.forEach((group, at) => {
    put16(bytes, IPV6_SIZE - (tail.length - at) * 2, group);
  });
  return bytes;
}

/** The groups of one side of `::`; the last two of an address may stand as an IPv4 address. */
function groups(side: string, text: string, last: boolean): number[] {
  if (side === "") return [];
  const parts = side.split(":");
  return parts.flatMap((part, at) => {
    if (last && at === parts.length - 1 && part.includes(".")) {
      const bytes = parseIpv4(part);
      return [get16(bytes, 0), get16(bytes, 2)];
    }
    if (!/^[0-9a-f]{1,4}$/i.test(part)) throw invalid("an IPv6 address", text);
    return [Number.parseInt(part, 16)];
  });
}

/** The IPv6 address at `offset`, as RFC 5952 §4 has it: `fec0::2`. */
export function formatIpv6(bytes: Uint8Array, offset = 0): string {
  const words = Array.from({ length: 8 }, (_, at) => get16(bytes, offset + at * 2));
  // The longest run of zeros, the first of equals, none shorter than two.
  let start = -1;
  let most = 1;
  for (let at = 0; at < 8; at++) {
    let run = 0;
    while (words[at + run] === 0) run++;
    if (run > most) {
      start = at;
      most = run;
    }
  }
  const hex = (from: number, to: number) =>
    words
      .slice(from, to)
      .map((word) => word.toString(16))
      .join(":");
  return start < 0 ? hex(0, 8) : `${hex(0, start)}::${hex(start + most, 8)}`;
}
