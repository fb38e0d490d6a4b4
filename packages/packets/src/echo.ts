// Echo of ICMP (RFC 792) and ICMPv6 (RFC 4443 §4.1).
import { complete, sum } from "./checksum.js";
import { type Headers, IpProtocol } from "./headers.js";
import { type IpPath, ipv4, transport } from "./packet.js";
import { verify } from "./verify.js";
import { get16, put16 } from "./words.js";

/** An echo message. */
export interface Echo {
  readonly type: "request" | "reply";
  readonly id: number;
  readonly sequence: number;
  /** Parsed: a view of the frame. */
  readonly data: Uint8Array;
}

const ECHO_SIZE = 8;

/** Types of messages. ICMP's and ICMPv6's. */
const types = {
  request: { 4: 8, 6: 128 },
  reply: { 4: 0, 6: 129 },
} as const;

/**
 * An IP packet with an echo message, ICMP's or ICMPv6's as the addresses are.
 *
 * @throws VirtioFault INVALID: an address, or too long
 */
export function echo(path: IpPath, message: Echo): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(ECHO_SIZE + message.data.length);
  put16(bytes, 4, message.id);
  put16(bytes, 6, message.sequence);
  bytes.set(message.data, ECHO_SIZE);
  const type = types[message.type];
  if (path.source.includes(":")) {
    bytes[0] = type[6];
    return transport(path, IpProtocol.ICMPV6, bytes, 2);
  }
  bytes[0] = type[4];
  put16(bytes, 2, complete(sum(bytes, 0, bytes.length)));
  return ipv4({ ...path, protocol: IpProtocol.ICMP }, bytes);
}

/**
 * The echo message of a frame; null: it holds none, or its checksum is wrong.
 *
 * @param headers - `parse` of the frame gave true
 */
export function parseEcho(frame: Uint8Array, headers: Headers): Echo | null {
  const { ip, l4, end, protocol } = headers;
  if (ip === 0 || protocol !== (ip === 4 ? IpProtocol.ICMP : IpProtocol.ICMPV6)) return null;
  if (l4 < 0 || end - l4 < ECHO_SIZE || frame[l4 + 1] !== 0) return null;
  const type = frame[l4];
  if (type !== types.request[ip] && type !== types.reply[ip]) return null;
  if (!verify(frame, 0, headers)) return null;
  return {
    type: type === types.request[ip] ? "request" : "reply",
    id: get16(frame, l4 + 4),
    sequence: get16(frame, l4 + 6),
    data: frame.subarray(l4 + ECHO_SIZE, end),
  };
}
