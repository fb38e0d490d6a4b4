// The Dynamic Host Configuration Protocol (RFC 2131), messages of clients and servers, with the options of RFC 2132 below.
import { VirtioFault } from "@virtio/core";
import { formatIpv4, formatMac, parseIpv4, parseMac } from "./addresses.js";
import { get16, get32, put16, put32 } from "./words.js";

/** UDP ports (RFC 2131 §4.1). */
export enum DhcpPort {
  SERVER = 67,
  CLIENT = 68,
}

/** Types of messages (RFC 2132 §9.6). Values. */
export enum DhcpMessageType {
  DISCOVER = 1,
  OFFER = 2,
  REQUEST = 3,
  DECLINE = 4,
  ACK = 5,
  NAK = 6,
  RELEASE = 7,
  INFORM = 8,
}

/** Options (RFC 2132). Values. */
export enum DhcpOption {
  PAD = 0,
  SUBNET_MASK = 1,
  ROUTER = 3,
  DNS_SERVER = 6,
  HOST_NAME = 12,
  REQUESTED_ADDRESS = 50,
  LEASE_TIME = 51,
  MESSAGE_TYPE = 53,
  SERVER_ID = 54,
  PARAMETER_LIST = 55,
  CLIENT_ID = 61,
  END = 255,
}

/** A message. Addresses that are not there are `0.0.0.0`; options that are not there are left out. */
export interface DhcpMessage {
  readonly type: DhcpMessageType;
  /** xid: 32 bits that the client chose. */
  readonly transaction: number;
  /** chaddr */
  readonly clientMac: string;
  /** The client takes its answer by broadcast only. Default false. */
  readonly broadcast?: boolean;
  /** ciaddr: the client's address, if it can answer ARP for it. */
  readonly clientAddress?: string;
  /** yiaddr: the address that the server gives. */
  readonly yourAddress?: string;
  /** siaddr: the server of the next step of booting. */
  readonly nextServer?: string;
  readonly subnetMask?: string;
  readonly routers?: readonly string[];
  readonly dnsServers?: readonly string[];
  /** ASCII. */
  readonly hostName?: string;
  readonly requestedAddress?: string;
  /** Seconds. */
  readonly leaseTime?: number;
  readonly serverId?: string;
  /** DhcpOption that the client would like to be told. */
  readonly parameters?: readonly number[];
  /** Hardware type, then address, or 0, then anything. */
  readonly clientId?: Uint8Array;
}

const COOKIE = 0x63825363;
/** Bytes before the options, the cookie with them. */
const FIXED_SIZE = 240;
/** RFC 1542 §2.1: no message is shorter than BOOTP's. */
const SIZE_MIN = 300;

const serverTypes: ReadonlySet<DhcpMessageType> = new Set([
  DhcpMessageType.OFFER,
  DhcpMessageType.ACK,
  DhcpMessageType.NAK,
]);

/**
 * The bytes of a message, to be the payload of UDP.
 *
 * @throws VirtioFault INVALID: an address, or an option of more than 255 bytes
 */
export function dhcp(message: DhcpMessage): Uint8Array<ArrayBuffer> {
  const options = writeOptions(message);
  const bytes = new Uint8Array(Math.max(SIZE_MIN, FIXED_SIZE + options.length));
  bytes[0] = serverTypes.has(message.type) ? 2 : 1;
  bytes[1] = 1;
  bytes[2] = 6;
  put32(bytes, 4, message.transaction);
  put16(bytes, 10, message.broadcast === true ? 0x8000 : 0);
  bytes.set(parseIpv4(message.clientAddress ?? "0.0.0.0"), 12);
  bytes.set(parseIpv4(message.yourAddress ?? "0.0.0.0"), 16);
  bytes.set(parseIpv4(message.nextServer ?? "0.0.0.0"), 20);
  bytes.set(parseMac(message.clientMac), 28);
  put32(bytes, 236, COOKIE);
  bytes.set(options, FIXED_SIZE);
  return bytes;
}

function writeOptions(message: DhcpMessage): number[] {
  const options: number[] = [];
  const add = (option: DhcpOption, value: Iterable<number> | undefined): void => {
    if (value === undefined) return;
    const bytes = [...value];
    if (bytes.length === 0) return;
    if (bytes.length > 255) {
      throw new VirtioFault(
        "INVALID",
        `DHCP option ${option} of ${bytes.length} bytes, more than 255`,
      );
    }
    options.push(option, bytes.length, ...bytes);
  };
  const address = (text: string | undefined) => (text === undefined ? undefined : parseIpv4(text));
  const list = (texts: readonly string[] | undefined) =>
    texts?.flatMap((text) => [...parseIpv4(text)]);
  const lease = message.leaseTime;
  add(DhcpOption.MESSAGE_TYPE, [message.type]);
  add(DhcpOption.SERVER_ID, address(message.serverId));
  add(DhcpOption.LEASE_TIME, lease === undefined ? undefined : word(lease));
  add(DhcpOption.SUBNET_MASK, address(message.subnetMask));
  add(DhcpOption.ROUTER, list(message.routers));
  add(DhcpOption.DNS_SERVER, list(message.dnsServers));
  add(DhcpOption.HOST_NAME, message.hostName?.split("").map(ascii));
  add(DhcpOption.REQUESTED_ADDRESS, address(message.requestedAddress));
  add(DhcpOption.CLIENT_ID, message.clientId);
  add(DhcpOption.PARAMETER_LIST, message.parameters);
  options.push(DhcpOption.END);
  return options;
}

function word(value: number): Uint8Array {
  const bytes = new Uint8Array(4);
  put32(bytes, 0, value);
  return bytes;
}

function ascii(character: string): number {
  return character.charCodeAt(0) & 0x7f;
}

/**
 * The message that UDP carried; null: it is none of DHCP over Ethernet, or an option is cut short or of a wrong length. An option
 * that stands several times is put together (RFC 3396); what stands in `sname` and `file` (option 52) is not looked at.
 */
export function parseDhcp(bytes: Uint8Array): DhcpMessage | null {
  if (bytes.length < FIXED_SIZE || get32(bytes, 236) !== COOKIE) return null;
  if (bytes[1] !== 1 || bytes[2] !== 6) return null;
  const options = parseOptions(bytes);
  const type = options?.get(DhcpOption.MESSAGE_TYPE);
  if (options == null || type?.length !== 1) return null;
  const message = type[0] as DhcpMessageType;
  if (!(message in DhcpMessageType) || bytes[0] !== (serverTypes.has(message) ? 2 : 1)) return null;
  const parsed: { -readonly [K in keyof DhcpMessage]: DhcpMessage[K] } = {
    type: message,
    transaction: get32(bytes, 4),
    clientMac: formatMac(bytes, 28),
    broadcast: get16(bytes, 10) >= 0x8000,
    clientAddress: formatIpv4(bytes, 12),
    yourAddress: formatIpv4(bytes, 16),
    nextServer: formatIpv4(bytes, 20),
  };
  for (const [option, value] of options) {
    const length = lengths.get(option);
    if (length === 4 ? value.length !== 4 : length === -4 && value.length % 4 !== 0) return null;
    const addresses = () =>
      Array.from({ length: value.length / 4 }, (_, at) =>
        formatIpv4(Uint8Array.from(value), at * 4),
      );
    if (option === DhcpOption.SUBNET_MASK) parsed.subnetMask = value.join(".");
    if (option === DhcpOption.REQUESTED_ADDRESS) parsed.requestedAddress = value.join(".");
    if (option === DhcpOption.SERVER_ID) parsed.serverId = value.join(".");
    if (option === DhcpOption.LEASE_TIME) parsed.leaseTime = get32(Uint8Array.from(value), 0);
    if (option === DhcpOption.ROUTER) parsed.routers = addresses();
    if (option === DhcpOption.DNS_SERVER) parsed.dnsServers = addresses();
    if (option === DhcpOption.HOST_NAME) parsed.hostName = String.fromCharCode(...value);
    if (option === DhcpOption.PARAMETER_LIST) parsed.parameters = value;
    if (option === DhcpOption.CLIENT_ID) parsed.clientId = Uint8Array.from(value);
  }
  return parsed;
}

/** Bytes of an option; -4: a multiple of 4. */
const lengths: ReadonlyMap<number, 4 | -4> = new Map([
  [DhcpOption.SUBNET_MASK, 4],
  [DhcpOption.ROUTER, -4],
  [DhcpOption.DNS_SERVER, -4],
  [DhcpOption.REQUESTED_ADDRESS, 4],
  [DhcpOption.LEASE_TIME, 4],
  [DhcpOption.SERVER_ID, 4],
]);

function parseOptions(bytes: Uint8Array): Map<number, number[]> | null {
  const options = new Map<number, number[]>();
  for (let at = FIXED_SIZE; at < bytes.length; ) {
    const option = bytes[at] as number;
    if (option === DhcpOption.END) break;
    if (option === DhcpOption.PAD) {
      at++;
      continue;
    }
    const from = at + 2;
    const to = from + (bytes[at + 1] ?? 0);
    if (from > bytes.length || to > bytes.length) return null;
    options.set(option, [...(options.get(option) ?? []), ...bytes.subarray(from, to)]);
    at = to;
  }
  return options;
}
