// Frames for tests of the network device: made and checked byte by byte, with no code of the product.

export const GUEST_MAC = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
export const PEER_MAC = [0x02, 0, 0, 0, 0, 1];

/** What a frame is made of. */
export interface FrameSpec {
  readonly ip?: 4 | 6;
  readonly protocol?: "tcp" | "udp";
  readonly to?: readonly number[];
  readonly from?: readonly number[];
  readonly vlan?: number;
  readonly ports?: readonly [source: number, destination: number];
  readonly sequence?: number;
  readonly flags?: number;
  readonly id?: number;
  readonly options?: number;
  readonly payload?: number | Uint8Array;
  /** Low byte of the sender's address, and of the receiver's. */
  readonly hosts?: readonly [number, number];
  readonly tos?: number;
}

/** Payload bytes that tell where they are. */
export const pattern = (length: number, from = 0): Uint8Array =>
  Uint8Array.from({ length }, (_, i) => (i + from) * 7 + ((i + from) >>> 8));

/** The ones' complement of the ones'-complement sum (RFC 1071), the slow way. */
export function checksum(bytes: readonly number[]): number {
  let sum = 0;
  for (let i = 0; i < bytes.length; i += 2)
    sum = (sum + ((bytes[i] ?? 0) << 8) + (bytes[i + 1] ?? 0)) % 0xffff_ffff;
  while (sum > 0xffff) sum = Math.floor(sum / 0x1_0000) + (sum % 0x1_0000);
  return sum ^ 0xffff;
}

const be16 = (n: number): number[] => [(n >> 8) & 0xff, n & 0xff];
const be32 = (n: number): number[] => [...be16(n >>> 16), ...be16(n)];

function addresses(ip: 4 | 6, [a, b]: readonly [number, number]): [number[], number[]] {
  const head = ip === 4 ? [10, 0, 0] : [0xfe, 0x80, ...Array<number>(13).fill(0)];
  return [
    [...head, a],
    [...head, b],
  ];
}

const pseudo = (ip: 4 | 6, from: number[], to: number[], protocol: number, length: number) =>
  ip === 4
    ? [...from, ...to, 0, protocol, ...be16(length)]
    : [...from, ...to, ...be32(length), 0, 0, 0, protocol];

/** A whole frame, its checksums complete; `partial`: that of TCP or UDP is the pseudo header's. */
export function frame(spec: FrameSpec = {}, partial = false): Uint8Array<ArrayBuffer> {
  const { ip = 4, protocol = "tcp", to = GUEST_MAC, from = PEER_MAC, ports = [1000, 80] } = spec;
  const { sequence = 1, flags = 0x10, id = 7, options = 0, hosts = [1, 2], tos = 0 } = spec;
  const { payload: content = 10 } = spec;
  const payload = [...(typeof content === "number" ? pattern(content) : content)];
  const number = protocol === "tcp" ? 6 : 17;
  const [source, destination] = addresses(ip, hosts);
  const length = (protocol === "tcp" ? 20 + options : 8) + payload.length;
  const upper =
    protocol === "tcp"
      ? [
          ...[...be16(ports[0]), ...be16(ports[1]), ...be32(sequence), ...be32(99)],
          ...[((20 + options) / 4) << 4, flags, ...be16(0x2000), 0, 0, 0, 0],
          ...Array<number>(options).fill(1),
        ]
      : [...be16(ports[0]), ...be16(ports[1]), ...be16(length), 0, 0];
  const at = protocol === "tcp" ? 16 : 6;
  const over = pseudo(ip, source, destination, number, length);
  const sum = partial
    ? checksum(over) ^ 0xffff
    : checksum([...over, ...upper, ...payload]) || (protocol === "udp" ? 0xffff : 0);
  upper.splice(at, 2, ...be16(sum));
  const network =
    ip === 4
      ? [0x45, tos, ...be16(20 + length), ...be16(id), 0x40, 0, 64, number, 0, 0]
      : [0x60 | (tos >> 4), (tos << 4) & 0xff, 0, 0, ...be16(length), number, 64];
  network.push(...source, ...destination);
  if (ip === 4) network.splice(10, 2, ...be16(checksum(network)));
  const tag = spec.vlan === undefined ? [] : [0x81, 0, ...be16(spec.vlan)];
  const type = ip === 4 ? [8, 0] : [0x86, 0xdd];
  return Uint8Array.from([...to, ...from, ...tag, ...type, ...network, ...upper, ...payload]);
}

/** What a frame made by `frame`, or a segment of one, holds; `problems` names each wrong length or checksum. */
export interface Seen {
  readonly id: number;
  readonly sequence: number;
  readonly flags: number;
  readonly payload: Uint8Array;
  readonly problems: readonly string[];
}

/** Takes a frame apart, and checks all lengths and checksums in it. */
export function look(bytes: Uint8Array): Seen {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const l3 = view.getUint16(12) === 0x8100 ? 18 : 14;
  const ip = view.getUint16(l3 - 2) === 0x800 ? 4 : 6;
  const l4 = l3 + (ip === 4 ? 20 : 40);
  const protocol = bytes[l3 + (ip === 4 ? 9 : 6)] as number;
  const tcp = protocol === 6;
  const length = bytes.length - l4;
  const problems: string[] = [];
  const claims = (what: string, value: number, right: number): void => {
    if (value !== right) problems.push(`${what} ${value}, not ${right}`);
  };
  if (ip === 4) {
    claims("IPv4 length", view.getUint16(l3 + 2), bytes.length - l3);
    claims("IPv4 checksum", checksum([...bytes.subarray(l3, l4)]), 0);
  } else claims("IPv6 length", view.getUint16(l3 + 4), length);
  if (!tcp) claims("UDP length", view.getUint16(l4 + 4), length);
  const first = l3 + (ip === 4 ? 12 : 8);
  const size = ip === 4 ? 4 : 16;
  const over = pseudo(
    ip,
    [...bytes.subarray(first, first + size)],
    [...bytes.subarray(first + size, first + 2 * size)],
    protocol,
    length,
  );
  claims("checksum", checksum([...over, ...bytes.subarray(l4)]), 0);
  const data = l4 + (tcp ? ((bytes[l4 + 12] as number) >> 4) * 4 : 8);
  return {
    id: ip === 4 ? view.getUint16(l3 + 4) : 0,
    sequence: tcp ? view.getUint32(l4 + 4) : 0,
    flags: tcp ? (bytes[l4 + 13] as number) : 0,
    payload: bytes.slice(data),
    problems,
  };
}
