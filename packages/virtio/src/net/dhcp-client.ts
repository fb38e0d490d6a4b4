// The client of DHCP (RFC 2131 §4.4), as far as one lease: it is not renewed.
import { VirtioFault } from "@virtio/core";
import {
  BROADCAST_MAC,
  type DhcpMessage,
  DhcpMessageType,
  DhcpOption,
  DhcpPort,
  dhcp,
  EtherType,
  get16,
  IpProtocol,
  parseDhcp,
  udp,
} from "@virtio/packets";
import { type InterfaceAddress, parseNetmask } from "./interface-address.js";
import type { Match, Station } from "./station.js";

/** Seconds to wait for offers, one after another, and for the answer to a request. */
const DISCOVER_WAITS = [3, 5, 8];
const REQUEST_WAITS = [4, 8];
/** Milliseconds that a link may take to come up. */
const LINK_WAIT = 5000;

/** What a server gave. */
export interface Lease extends InterfaceAddress {
  readonly router: string | null;
  /** Seconds. */
  readonly time: number;
}

/** What the client tells of what it does: dhclient's lines. */
export type Progress = (line: string) => void;

/**
 * Brings an interface up and asks for an address, which it then has in place of the IPv4 addresses it had.
 * @throws VirtioFault TIMED_OUT (no link, no offer, no answer), IO (the server took its offer back); the signal's reason
 */
export async function lease(
  station: Station,
  progress: Progress,
  signal: AbortSignal,
): Promise<Lease> {
  const { interface: what } = station;
  await station.up();
  await linked(station, signal);
  const transaction = Math.floor(Math.random() * 2 ** 32);
  const common = { transaction, clientMac: what.mac };
  const parameters = [DhcpOption.SUBNET_MASK, DhcpOption.ROUTER, DhcpOption.DNS_SERVER];
  const answerOf = (types: readonly DhcpMessageType[]): Match<DhcpMessage> =>
    answerTo(transaction, what.mac, types);

  let offer: DhcpMessage | null = null;
  for (const wait of DISCOVER_WAITS) {
    progress(`DHCPDISCOVER on ${what.name} to 255.255.255.255 port 67 interval ${wait}`);
    const answer = station.first(answerOf([DhcpMessageType.OFFER]), 1000 * wait, signal);
    broadcast(station, { ...common, type: DhcpMessageType.DISCOVER, parameters });
    offer = await answer;
    if (offer !== null) break;
  }
  const { yourAddress: address, serverId } = offer ?? {};
  if (address === undefined || serverId === undefined)
    throw new VirtioFault("TIMED_OUT", "No DHCPOFFERS received.");
  progress(`DHCPOFFER from ${serverId}`);

  for (const wait of REQUEST_WAITS) {
    progress(`DHCPREQUEST on ${what.name} to 255.255.255.255 port 67`);
    const types = [DhcpMessageType.ACK, DhcpMessageType.NAK];
    const answer = station.first(answerOf(types), 1000 * wait, signal);
    const asked = { requestedAddress: address, serverId, parameters };
    broadcast(station, { ...common, type: DhcpMessageType.REQUEST, ...asked });
    const said = await answer;
    if (said === null) continue;
    if (said.type === DhcpMessageType.NAK)
      throw new VirtioFault("IO", `DHCPNAK from ${serverId}: it does not give ${address}`);
    progress(`DHCPACK from ${serverId}`);
    return bind(station, address, said);
  }
  throw new VirtioFault("TIMED_OUT", `${serverId} does not answer the request for ${address}`);
}

async function bind(station: Station, address: string, given: DhcpMessage): Promise<Lease> {
  for (const { address: old } of station.addresses)
    if (!old.includes(":") && old !== address) await station.remove(old);
  const router = given.routers?.[0] ?? null;
  const prefix = parseNetmask(given.subnetMask ?? "255.255.255.0");
  await station.add({ address, prefix });
  station.router = router;
  return { address, prefix, router, time: given.leaseTime ?? 0 };
}

/** Waits until there is a link. */
async function linked({ interface: what, tasks }: Station, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted();
  if (what.link.up) return;
  await new Promise<void>((resolve, reject) => {
    const end = (): void => {
      late.stop();
      stop();
      signal.removeEventListener("abort", abort);
    };
    const abort = (): void => {
      end();
      reject(signal.reason);
    };
    const stop = what.onLinkChange((up) => {
      if (!up) return;
      end();
      resolve();
    });
    const late = tasks.callout(LINK_WAIT, () => {
      end();
      reject(new VirtioFault("TIMED_OUT", `${what.name}: no link, giving up`));
    });
    signal.addEventListener("abort", abort);
  });
}

function broadcast(station: Station, message: DhcpMessage): void {
  const path = { source: "0.0.0.0", destination: "255.255.255.255" };
  const ports = { sourcePort: DhcpPort.CLIENT, destinationPort: DhcpPort.SERVER };
  station.transmit(BROADCAST_MAC, EtherType.IPV4, udp({ ...path, ...ports }, dhcp(message)));
}

/** A server's answer to this client, of one of these types, with an address that a station can have. */
function answerTo(
  transaction: number,
  mac: string,
  types: readonly DhcpMessageType[],
): Match<DhcpMessage> {
  return (frame, headers) => {
    const { ip, protocol, l4, payload, end } = headers;
    if (ip !== 4 || protocol !== IpProtocol.UDP || l4 < 0) return null;
    if (get16(frame, l4 + 2) !== DhcpPort.CLIENT) return null;
    const message = parseDhcp(frame.slice(payload, end));
    if (message === null || !types.includes(message.type)) return null;
    if (message.transaction !== transaction || message.clientMac !== mac) return null;
    const named = message.yourAddress !== undefined && message.yourAddress !== "0.0.0.0";
    return named || message.type === DhcpMessageType.NAK ? message : null;
  };
}
