// The hash of received frames: Toeplitz over addresses and ports (virtio 1.4 §5.1.9.4.3).
import { NetHash } from "@virtio/core/net";
import { type Headers, IpProtocol } from "@virtio/packets";

/** Bytes of the key. */
export const HASH_KEY_SIZE = 40;

/** Hash types that the device computes, a bit each: those without IPv6 extension headers. */
export const SUPPORTED_HASH_TYPES: number =
  (1 << NetHash.IPV4) |
  (1 << NetHash.TCPV4) |
  (1 << NetHash.UDPV4) |
  (1 << NetHash.IPV6) |
  (1 << NetHash.TCPV6) |
  (1 << NetHash.UDPV6);

/** Two IPv6 addresses and two ports. */
const INPUT_MAX = 36;

/** Computes hashes with one key. */
export class ToeplitzHash {
  /** For each byte of the input and each value of it, what it contributes. */
  readonly #table = new Int32Array(INPUT_MAX * 256);
  /** Enabled hash types, a bit each. */
  types = 0;
  /** Of the last frame: its hash, and what it was computed over: NetHash plus one, or 0. */
  value = 0;
  report = 0;

  /** @param key - at most HASH_KEY_SIZE bytes; what is missing is 0 */
  setKey(key: Uint8Array): void {
    for (let at = 0; at < INPUT_MAX; at++) {
      // 32 bits of the key from each bit of this byte on.
      const bits = Array.from({ length: 8 }, (_, bit) => window(key, at * 8 + bit));
      for (let byte = 0; byte < 256; byte++) {
        let hash = 0;
        for (let bit = 0; bit < 8; bit++)
          if ((byte & (0x80 >>> bit)) !== 0) hash ^= bits[bit] as number;
        this.#table[at * 256 + byte] = hash;
      }
    }
  }

  /** Fills `value` and `report` from a frame whose headers were found. */
  compute(headers: Headers, bytes: Uint8Array, offset: number): void {
    this.value = 0;
    this.report = 0;
    const { ip } = headers;
    if (ip === 0) return;
    const type = this.#typeOf(headers);
    if (type < 0) return;
    const length = ip === 4 ? 8 : 32;
    const addresses = offset + headers.l3 + (ip === 4 ? 12 : 8);
    let hash = 0;
    for (let i = 0; i < length; i++)
      hash ^= this.#table[i * 256 + (bytes[addresses + i] as number)] as number;
    if (type !== NetHash.IPV4 && type !== NetHash.IPV6)
      for (let i = 0; i < 4; i++)
        hash ^= this.#table[
          (length + i) * 256 + (bytes[offset + headers.l4 + i] as number)
        ] as number;
    this.value = hash >>> 0;
    this.report = type + 1;
  }

  /** The first enabled type that fits (§5.1.9.4.3.2, §5.1.9.4.3.3); -1: none. */
  #typeOf({ ip, protocol, l4 }: Headers): number {
    const four = ip === 4;
    const enabled = (type: NetHash): boolean => (this.types & (1 << type)) !== 0;
    if (l4 >= 0) {
      const tcp = four ? NetHash.TCPV4 : NetHash.TCPV6;
      const udp = four ? NetHash.UDPV4 : NetHash.UDPV6;
      if (protocol === IpProtocol.TCP && enabled(tcp)) return tcp;
      if (protocol === IpProtocol.UDP && enabled(udp)) return udp;
    }
    const address = four ? NetHash.IPV4 : NetHash.IPV6;
    return enabled(address) ? address : -1;
  }
}

/** 32 bits of the key from bit `at` on. */
function window(key: Uint8Array, at: number): number {
  let word = 0;
  for (let i = 0; i < 32; i++) {
    const bit = at + i;
    word = (word << 1) | (((key[bit >>> 3] ?? 0) >>> (7 - (bit & 7))) & 1);
  }
  return word;
}
