import { pseudoSum4, pseudoSum6, sum } from "./checksum.js";
import { type Headers, IpProtocol } from "./headers.js";
import { get16 } from "./words.js";

/**
 * Whether the checksums of a frame are right: of the IPv4 header, and of TCP, UDP, ICMP and ICMPv6, if it is no fragment. What has no
 * checksum, as UDP over IPv4 may (RFC 768), is right. Allocates nothing.
 *
 * @param offset - of the frame
 * @param headers - `parse` of the frame gave true
 */
export function verify(bytes: Uint8Array, offset: number, headers: Headers): boolean {
  const { ip, l4, protocol } = headers;
  if (ip === 0) return true;
  const l3 = offset + headers.l3;
  if (ip === 4 && sum(bytes, l3, l3 + ((bytes[l3] as number) & 15) * 4) !== 0xffff) return false;
  if (l4 < 0) return true;
  const from = offset + l4;
  const to = offset + headers.end;
  if (protocol === IpProtocol.ICMP) return ip === 4 && sum(bytes, from, to) === 0xffff;
  if (protocol === IpProtocol.UDP && get16(bytes, from + 6) === 0) return ip === 4;
  if (
    protocol !== IpProtocol.TCP &&
    protocol !== IpProtocol.UDP &&
    (protocol !== IpProtocol.ICMPV6 || ip === 4)
  ) {
    return true;
  }
  const pseudo =
    ip === 4
      ? pseudoSum4(bytes, l3, protocol, to - from)
      : pseudoSum6(bytes, l3, protocol, to - from);
  return sum(bytes, from, to, pseudo) === 0xffff;
}
