// A small network of its own behind a device: the one that QEMU's user-mode network (slirp) gives, without the world behind it.
import type { TaskQueue } from "@virtio/core";
import {
  ArpOperation,
  arp,
  BROADCAST_MAC,
  type DhcpMessage,
  DhcpMessageType,
  DhcpPort,
  dhcp,
  EtherType,
  echo,
  ethernet,
  formatIpv4,
  formatIpv6,
  formatMac,
  get16,
  Headers,
  IpProtocol,
  type NeighborMessage,
  neighbor,
  parseArp,
  parseDhcp,
  parseEcho,
  parseNeighbor,
  udp,
  verify,
} from "@virtio/packets";
import { DEFAULT_MAX_FRAME, type NetBackend } from "../net-backend.js";
import { FrameLane } from "./frame-lane.js";

/** Addresses of the network, as QEMU has them. */
const GATEWAY = "10.0.2.2";
const DNS = "10.0.2.3";
const NETMASK = "255.255.255.0";
const GATEWAY6 = "fec0::2";
const DNS6 = "fec0::3";
const LINK_LOCAL = "fe80::2";
const PREFIX6 = "fec0::";
const ALL_NODES = "ff02::1";
/** The gateway's MAC addresses: 52:55 and its IPv4 address, and one for IPv6. */
const MAC = "52:55:0a:00:02:02";
const MAC6 = "52:56:00:00:00:02";

/** Leases: 10.0.2.15 and so on, so many. */
const FIRST_LEASE = 15;
const LEASES = 16;
/** Seconds. */
const LEASE_TIME = 86_400;
const ROUTER_LIFETIME = 1800;
const PREFIX_VALID = 86_400;
const PREFIX_PREFERRED = 14_400;
/** TTL and hop limit of what the gateway answers. */
const HOPS = 255;

/** UDP services (RFC 862; RFC 863's port 9, discard, answers nothing). */
const ECHO_PORT = 7;

const lease = (n: number): string => `10.0.2.${FIRST_LEASE + n}`;

/**
 * The network 10.0.2.0/24 and fec0::/64 with one other station: 10.0.2.2, fec0::2 and fe80::2, which is gateway and DHCP server,
 * answers ARP, neighbor and router solicitations, echo requests of ICMP and ICMPv6, and UDP on port 7; and 10.0.2.3, fec0::3, where
 * QEMU has a name server, which answers no names here. Nothing is forwarded.
 */
export class GatewayBackend implements NetBackend {
  readonly maxFrame: number = DEFAULT_MAX_FRAME;
  readonly linkUp: boolean = true;
  onLinkChange: NetBackend["onLinkChange"] = null;
  onReady: NetBackend["onReady"] = null;
  /** To the device. An answer that finds no room is lost, as on any network. */
  readonly #answers = new FrameLane(() => {});
  readonly #headers = new Headers();
  /** Stations by the number of their lease. */
  readonly #leases: (string | undefined)[] = new Array<string | undefined>(LEASES).fill(undefined);

  get deliver(): NetBackend["deliver"] {
    return this.#answers.deliver;
  }

  set deliver(deliver: NetBackend["deliver"]) {
    this.#answers.deliver = deliver;
  }

  connect(tasks: TaskQueue): void {
    this.#answers.tasks = tasks;
  }

  room(): void {
    this.#answers.room();
  }

  send(bytes: Uint8Array, offset: number, length: number): boolean {
    const frame = bytes.subarray(offset, offset + length);
    const headers = this.#headers;
    // A tag is of a network that is not here.
    if (!headers.parse(frame, 0, length) || headers.vlan >= 0 || !verify(frame, 0, headers))
      return true;
    const station = formatMac(frame, 6);
    if (headers.etherType === EtherType.ARP) this.#arp(frame);
    else if (headers.ip === 4) this.#ipv4(frame, station);
    else if (headers.ip === 6) this.#ipv6(frame, station);
    return true;
  }

  async close(): Promise<void> {
    this.#answers.close();
  }

  #answer(
    header: { readonly destination: string; readonly etherType: EtherType },
    payload: Uint8Array,
  ): void {
    const source = header.etherType === EtherType.IPV6 ? MAC6 : MAC;
    const frame = ethernet({ ...header, source }, payload);
    this.#answers.send(frame, 0, frame.length);
  }

  #arp(frame: Uint8Array): void {
    const request = parseArp(frame, this.#headers);
    if (request === null || request.operation !== ArpOperation.REQUEST) return;
    if (request.targetIp !== GATEWAY && request.targetIp !== DNS) return;
    const reply = arp({
      operation: ArpOperation.REPLY,
      senderMac: MAC,
      senderIp: request.targetIp,
      targetMac: request.senderMac,
      targetIp: request.senderIp,
    });
    this.#answer({ destination: request.senderMac, etherType: EtherType.ARP }, reply);
  }

  #ipv4(frame: Uint8Array, station: string): void {
    const { l3, l4, payload, end, protocol } = this.#headers;
    if (l4 < 0) return;
    const to = { destination: station, etherType: EtherType.IPV4 };
    const [from, at] = [formatIpv4(frame, l3 + 12), formatIpv4(frame, l3 + 16)];
    const ours = at === GATEWAY || at === DNS;
    if (protocol === IpProtocol.UDP && get16(frame, l4 + 2) === DhcpPort.SERVER) {
      if (ours || at === "255.255.255.255") this.#dhcp(frame.subarray(payload, end));
    } else if (ours) this.#reflect(frame, to, { source: at, destination: from });
  }

  #ipv6(frame: Uint8Array, station: string): void {
    const { l3, l4 } = this.#headers;
    if (l4 < 0) return;
    const to = { destination: station, etherType: EtherType.IPV6 };
    const [from, at] = [formatIpv6(frame, l3 + 8), formatIpv6(frame, l3 + 24)];
    const message = parseNeighbor(frame, this.#headers);
    if (message !== null) this.#neighbor(message, from, station);
    else if ([GATEWAY6, DNS6, LINK_LOCAL].includes(at) && from !== "::")
      this.#reflect(frame, to, { source: at, destination: from });
  }

  /** Echo of ICMP and of UDP. */
  #reflect(
    frame: Uint8Array,
    to: { readonly destination: string; readonly etherType: EtherType },
    path: { readonly source: string; readonly destination: string },
  ): void {
    const { l4, payload, end, protocol } = this.#headers;
    const back = { ...path, hopLimit: HOPS };
    if (protocol === IpProtocol.UDP && get16(frame, l4 + 2) === ECHO_PORT) {
      const ports = { sourcePort: ECHO_PORT, destinationPort: get16(frame, l4) };
      this.#answer(to, udp({ ...back, ...ports }, frame.subarray(payload, end)));
    }
    const request = parseEcho(frame, this.#headers);
    if (request?.type === "request") this.#answer(to, echo(back, { ...request, type: "reply" }));
  }

  #neighbor(message: NeighborMessage, from: string, station: string): void {
    // Who has no address yet is answered as all are (RFC 4861 §7.2.4): duplicate address detection.
    const unspecified = from === "::";
    const destination = unspecified ? ALL_NODES : from;
    const to = {
      destination: unspecified ? "33:33:00:00:00:01" : station,
      etherType: EtherType.IPV6,
    };
    if (message.type === "router-solicitation") {
      const advertisement = neighbor({ source: LINK_LOCAL, destination }, routerAdvertisement);
      this.#answer(to, advertisement);
    } else if (
      message.type === "neighbor-solicitation" &&
      [GATEWAY6, DNS6, LINK_LOCAL].includes(message.target)
    ) {
      const { target } = message;
      const said = { router: true, solicited: !unspecified, override: true };
      const path = { source: target, destination };
      this.#answer(
        to,
        neighbor(path, { type: "neighbor-advertisement", target, mac: MAC6, ...said }),
      );
    }
  }

  #dhcp(payload: Uint8Array): void {
    const message = parseDhcp(payload);
    if (message === null) return;
    const { type, clientMac, transaction, requestedAddress, clientAddress } = message;
    const asked = requestedAddress ?? (clientAddress === "0.0.0.0" ? undefined : clientAddress);
    if (type === DhcpMessageType.RELEASE) {
      const n = this.#leases.indexOf(clientMac);
      if (n >= 0) this.#leases[n] = undefined;
    }
    if (type === DhcpMessageType.DISCOVER) {
      const address = this.#lease(clientMac, asked);
      if (address !== null) this.#give(DhcpMessageType.OFFER, message, address);
    }
    if (type === DhcpMessageType.REQUEST && (message.serverId ?? GATEWAY) === GATEWAY) {
      const address = this.#lease(clientMac, asked);
      if (address !== null && address === asked) this.#give(DhcpMessageType.ACK, message, address);
      else this.#reply({ type: DhcpMessageType.NAK, transaction, clientMac, serverId: GATEWAY });
    }
  }

  /** The address of a station: the one it has, the one it asks for if that is free, or the first free one; null when none is. */
  #lease(station: string, asked: string | undefined): string | null {
    const leases = this.#leases;
    const has = leases.indexOf(station);
    if (has >= 0) return lease(has);
    const wanted = leases.findIndex((owner, n) => owner === undefined && lease(n) === asked);
    const n = wanted >= 0 ? wanted : leases.indexOf(undefined);
    if (n < 0) return null;
    leases[n] = station;
    return lease(n);
  }

  #give(type: DhcpMessageType, { transaction, clientMac }: DhcpMessage, address: string): void {
    this.#reply({
      ...{ type, transaction, clientMac, yourAddress: address },
      ...{ serverId: GATEWAY, nextServer: GATEWAY, leaseTime: LEASE_TIME },
      ...{ subnetMask: NETMASK, routers: [GATEWAY], dnsServers: [DNS] },
    });
  }

  /** By broadcast, as the station has no address to be reached at. */
  #reply(message: DhcpMessage): void {
    const path = { source: GATEWAY, destination: "255.255.255.255", hopLimit: HOPS };
    const ports = { sourcePort: DhcpPort.SERVER, destinationPort: DhcpPort.CLIENT };
    const to = { destination: BROADCAST_MAC, etherType: EtherType.IPV4 };
    this.#answer(to, udp({ ...path, ...ports }, dhcp(message)));
  }
}

const routerAdvertisement: NeighborMessage = {
  type: "router-advertisement",
  hopLimit: 64,
  managed: false,
  other: false,
  lifetime: ROUTER_LIFETIME,
  mac: MAC6,
  prefixes: [
    {
      address: PREFIX6,
      length: 64,
      onLink: true,
      autonomous: true,
      validLifetime: PREFIX_VALID,
      preferredLifetime: PREFIX_PREFERRED,
    },
  ],
  dnsServers: [DNS6],
};
