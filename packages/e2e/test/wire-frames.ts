// Ethernet frames for tests, made with no code of the product: each is built from what it says, its lengths and checksums with it.

export const FIN = 0x01;
export const PSH = 0x08;
export const ACK = 0x10;
export const ECE = 0x40;
export const CWR = 0x80;

/** Where TCP and UDP have their checksum. */
const TCP_SUM = 16;
const UDP_SUM = 6;

/** What a frame says. */
export interface Packet {
  readonly to: readonly number[];
  readonly from: readonly number[];
  /** VLAN tag; -1: none. */
  readonly tag: number;
  /** 0: neither, and the payload is all that is behind the Ethernet header. */
  readonly ip: 0 | 4 | 6;
  readonly protocol: "tcp" | "udp";
  /** Source port: the flow. */
  readonly port: number;
  /** Of IPv4. */
  readonly id: number;
  readonly sequence: number;
  readonly flags: number;
  /** Bytes of TCP options, a multiple of 4. */
  readonly options: number;
  readonly payload: Uint8Array;
  /** Bytes behind the IP packet. */
  readonly padding: number;
  readonly checksum: "right" | "wrong" | "none";
}

/** The ones'-complement sum of 16-bit words (RFC 1071). */
function onesSum(bytes: Uint8Array, from: number, to: number, start = 0): number {
  let sum = start;
  for (let i = from; i < to; i += 2)
    sum += ((bytes[i] as number) << 8) | (i + 1 < to ? (bytes[i + 1] as number) : 0);
  while (sum > 0xffff) sum = (sum % 0x1_0000) + Math.floor(sum / 0x1_0000);
  return sum;
}

/** Where TCP or UDP begins, in a frame that has its VLAN tag in its bytes or none. */
export const transportOf = ({ ip }: Packet, tagged: boolean): number =>
  14 + (tagged ? 4 : 0) + (ip === 4 ? 20 : 40);

/** Where the checksum is, from there on. */
export const checksumOffsetOf = ({ protocol }: Packet): number =>
  protocol === "tcp" ? TCP_SUM : UDP_SUM;

/** Bytes of all headers behind Ethernet's. */
export const headersOf = ({ ip, protocol, options }: Packet): number =>
  ip === 0 ? 0 : (ip === 4 ? 20 : 40) + (protocol === "tcp" ? 20 + options : 8);

/**
 * The frame.
 * @param tagged - the VLAN tag is in its bytes
 * @param partial - the checksum of TCP or UDP is the pseudo header's sum
 */
export function build(packet: Packet, tagged: boolean, partial = false): Uint8Array {
  const { ip, protocol, payload, options } = packet;
  const l3 = tagged ? 18 : 14;
  const end = l3 + headersOf(packet) + payload.length;
  const bytes = new Uint8Array(end + packet.padding).fill(0xa5, end);
  const view = new DataView(bytes.buffer);
  bytes.set([...packet.to, ...packet.from]);
  if (tagged) {
    view.setUint16(12, 0x8100);
    view.setUint16(14, packet.tag);
  }
  view.setUint16(l3 - 2, ip === 4 ? 0x0800 : ip === 6 ? 0x86dd : 0x88b5);
  bytes.set(payload, end - payload.length);
  if (ip === 0) return bytes;

  const l4 = transportOf(packet, tagged);
  const number = protocol === "tcp" ? 6 : 17;
  const host = packet.port & 0xff;
  if (ip === 4) {
    bytes.set([0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, number, 0, 0, 10, 1, 0, host, 10, 2, 0, 9], l3);
    view.setUint16(l3 + 2, end - l3);
    view.setUint16(l3 + 4, packet.id);
    view.setUint16(l3 + 10, onesSum(bytes, l3, l4) ^ 0xffff);
  } else {
    bytes.set([0x60, 0, 0, 0, 0, 0, number, 64, 0xfd, 1], l3);
    bytes.set([0xfd, 2], l3 + 24);
    view.setUint16(l3 + 4, end - l4);
    bytes[l3 + 23] = host;
    bytes[l3 + 39] = 9;
  }
  view.setUint16(l4, packet.port);
  view.setUint16(l4 + 2, 5001);
  if (protocol === "tcp") {
    view.setUint32(l4 + 4, packet.sequence);
    view.setUint32(l4 + 8, 77);
    view.setUint16(l4 + 12, ((20 + options) << 10) | packet.flags);
    view.setUint16(l4 + 14, 0x4000);
    // No-operation options.
    bytes.fill(1, l4 + 20, l4 + 20 + options);
  } else view.setUint16(l4 + 4, end - l4);

  const at = l4 + checksumOffsetOf(packet);
  if (packet.checksum === "none") return bytes;
  const addresses = onesSum(bytes, ip === 4 ? l3 + 12 : l3 + 8, l4);
  const pseudo = onesSum(bytes, 0, 0, addresses + number + end - l4);
  const sum = onesSum(bytes, l4, end, pseudo) ^ 0xffff;
  if (partial) view.setUint16(at, pseudo);
  else view.setUint16(at, sum === 0 && protocol === "udp" ? 0xffff : sum);
  if (packet.checksum === "wrong") view.setUint16(at, view.getUint16(at) ^ 0x5555);
  return bytes;
}

/** The flow of a frame, as its source port says; 0: neither IPv4 nor IPv6. */
export function flowOf(bytes: Uint8Array): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const l3 = view.getUint16(12) === 0x8100 ? 18 : 14;
  const type = view.getUint16(l3 - 2);
  if (type === 0x0800) return view.getUint16(l3 + 20);
  return type === 0x86dd ? view.getUint16(l3 + 40) : 0;
}

/** What a sender without offload would have sent: pieces of at most `size` bytes (RFC 9293 §3.8.3, RFC 3168 §6.1.2). */
export function segmentsOf(packet: Packet, size: number): Packet[] {
  const { payload, flags } = packet;
  const count = Math.ceil(payload.length / size);
  return Array.from({ length: count }, (_, i) => ({
    ...packet,
    id: (packet.id + i) & 0xffff,
    sequence: (packet.sequence + i * size) >>> 0,
    // CWR goes with the first, FIN and PSH with the last.
    flags: flags & ~(i === 0 ? 0 : CWR) & ~(i === count - 1 ? 0 : FIN | PSH),
    payload: payload.subarray(i * size, (i + 1) * size),
  }));
}

/** The frame that segments in their order make. */
export function mergedOf(segments: readonly Packet[]): Packet {
  const [first] = segments;
  const last = segments.at(-1);
  if (first === undefined || last === undefined) throw new Error("no segments");
  return {
    ...first,
    flags: first.flags | (last.flags & PSH),
    padding: 0,
    payload: Buffer.concat(segments.map(({ payload }) => payload)),
  };
}

/** The answer to a frame: addresses and ports change places, which leaves the checksums right. */
export function answerTo(bytes: Uint8Array): Uint8Array {
  const answer = bytes.slice();
  const exchange = (a: number, b: number, length: number): void => {
    answer.set(bytes.subarray(a, a + length), b);
    answer.set(bytes.subarray(b, b + length), a);
  };
  exchange(0, 6, 6);
  const l3 = bytes[12] === 0x81 ? 18 : 14;
  const four = bytes[l3 - 2] === 8;
  exchange(l3 + (four ? 12 : 8), l3 + (four ? 16 : 24), four ? 4 : 16);
  exchange(l3 + (four ? 20 : 40), l3 + (four ? 22 : 42), 2);
  return answer;
}
