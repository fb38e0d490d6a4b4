// A small IP host on one interface: what ping(8), dhclient(8) and ifconfig(8) need, and no more. It has no sockets, forwards nothing,
// and neither cuts packets into fragments nor puts them together.
import { type NetworkInterface, type TaskQueue, VirtioFault } from "@virtio/core";
import {
  ArpOperation,
  arp,
  BROADCAST_MAC,
  EtherType,
  echo,
  ethernet,
  formatIpv4,
  formatIpv6,
  Headers,
  multicastMac,
  type NeighborMessage,
  neighbor,
  parseArp,
  parseEcho,
  parseNeighbor,
  solicitedNode,
  verify,
} from "@virtio/packets";
import {
  type InterfaceAddress,
  isInet6,
  isLinkLocal,
  isNeighbor,
  linkLocalOf,
} from "./interface-address.js";
import { NeighborCache } from "./neighbor-cache.js";

const NO_MAC = "00:00:00:00:00:00";
const ALL_NODES = "ff02::1";
/** Questions to a neighbor, and milliseconds between them (net.link.ether.inet.maxtries). */
const SOLICITATIONS = 5;
const SOLICIT_WAIT = 1000;
/** Frames that wait for a transmit queue; one more is dropped. */
const WAITING_MAX = 64;

/** Looks at a frame that came; what is not null is what was waited for. */
export type Match<T> = (frame: Uint8Array, headers: Headers) => T | null;

/** One interface with its addresses and its neighbors. */
export class Station {
  readonly interface: NetworkInterface;
  readonly neighbors: NeighborCache;
  readonly tasks: TaskQueue;
  /** The IPv4 router for what is on no network of this interface; null: there is none. */
  router: string | null = null;
  readonly #headers = new Headers();
  readonly #listeners = new Set<(frame: Uint8Array, headers: Headers) => void>();
  #addresses: readonly InterfaceAddress[] = [];
  #writer: WritableStreamDefaultWriter<Uint8Array> | null = null;
  #waiting = 0;
  /** Frames are heard: from the first `up` on. */
  #listening = false;

  constructor(what: NetworkInterface, tasks: TaskQueue) {
    this.interface = what;
    this.tasks = tasks;
    this.neighbors = new NeighborCache(tasks);
  }

  /** IPv4's first, in the order in which they were given. */
  get addresses(): readonly InterfaceAddress[] {
    return this.#addresses;
  }

  /** Brings the interface up, with a link-local address (auto_linklocal). @throws VirtioFault what the driver says */
  async up(): Promise<void> {
    await this.interface.up();
    this.#listen();
    if (!this.#addresses.some(({ address }) => isLinkLocal(address)))
      this.#addresses = [...this.#addresses, linkLocalOf(this.interface.mac)];
    await this.#joinGroups();
    for (const { address } of this.#addresses) this.#announce(address);
  }

  /** Gives the interface an address, and brings it up. An address that it has gets another network. @throws VirtioFault */
  async add(added: InterfaceAddress): Promise<void> {
    const others = this.#addresses.filter(({ address }) => address !== added.address);
    const inet6 = [added, ...others].filter(({ address }) => isInet6(address));
    const inet = [...others, added].filter(({ address }) => !isInet6(address));
    this.#addresses = [...inet, ...inet6];
    await this.up();
  }

  /** Takes an address away. @throws VirtioFault NOT_FOUND */
  async remove(address: string): Promise<void> {
    if (!this.has(address))
      throw new VirtioFault("NOT_FOUND", "Can't assign requested address", {
        device: this.interface.name,
      });
    this.#addresses = this.#addresses.filter((each) => each.address !== address);
    if (this.interface.running) await this.#joinGroups();
  }

  has(address: string): boolean {
    return this.#addresses.some((each) => each.address === address);
  }

  /** The address to send to `destination` from; null: there is no way to it. */
  sourceFor(destination: string): string | null {
    const near = this.#addresses.find((each) => isNeighbor(each, destination));
    if (near !== undefined || isInet6(destination)) return near?.address ?? null;
    const { router } = this;
    const far =
      router === null ? undefined : this.#addresses.find((each) => isNeighbor(each, router));
    return far?.address ?? null;
  }

  /**
   * Transmits an IP packet to where `destination` is reached, asking for its MAC address if need be.
   * @throws VirtioFault TIMED_OUT: nobody there answers; the signal's reason
   */
  async sendIp(packet: Uint8Array, destination: string, signal: AbortSignal): Promise<void> {
    const etherType = isInet6(destination) ? EtherType.IPV6 : EtherType.IPV4;
    if (this.has(destination)) {
      const { mac } = this.interface;
      const frame = ethernet({ destination: mac, source: mac, etherType }, packet);
      this.tasks.enqueue(() => this.#input(frame));
      return;
    }
    const near = this.#addresses.some((each) => isNeighbor(each, destination));
    const hop = near ? destination : (this.router ?? destination);
    this.transmit(await this.#resolve(hop, signal), etherType, packet);
  }

  /** Transmits to a MAC address. A frame that finds no room is dropped, as on any host. */
  transmit(destination: string, etherType: EtherType, payload: Uint8Array): void {
    if (this.#waiting >= WAITING_MAX) return;
    this.#waiting += 1;
    this.#writer ??= this.interface.writable.getWriter();
    const frame = ethernet({ destination, source: this.interface.mac, etherType }, payload);
    const done = (): void => {
      this.#waiting -= 1;
    };
    // The interface counts what it could not send; one that ended says so to whoever waits for an answer.
    this.#writer.write(frame).then(done, done);
  }

  /**
   * Waits for a frame.
   * @returns what `match` made of it; null after `ms` milliseconds
   * @throws the signal's reason
   */
  first<T>(match: Match<T>, ms: number, signal: AbortSignal): Promise<T | null> {
    return new Promise((resolve, reject) => {
      const end = (): void => {
        late.stop();
        stop();
        signal.removeEventListener("abort", abort);
      };
      const abort = (): void => {
        end();
        reject(signal.reason);
      };
      const stop = this.listen((frame, headers) => {
        const found = match(frame, headers);
        if (found === null) return;
        end();
        resolve(found);
      });
      const late = this.tasks.callout(ms, () => {
        end();
        resolve(null);
      });
      if (signal.aborted) abort();
      else signal.addEventListener("abort", abort);
    });
  }

  /** Calls `listener` with each frame that came whole; call what it returns to stop. */
  listen(listener: (frame: Uint8Array, headers: Headers) => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  #listen(): void {
    if (this.#listening) return;
    this.#listening = true;
    const hear = async (): Promise<void> => {
      for await (const frame of this.interface) this.#input(frame);
    };
    // An interface that ends, however it does, sends nothing more.
    hear().catch(() => {});
  }

  #input(frame: Uint8Array): void {
    const headers = this.#headers;
    if (!headers.parse(frame, 0, frame.length) || headers.vlan >= 0 || !verify(frame, 0, headers))
      return;
    if (headers.etherType === EtherType.ARP) this.#arp(frame);
    else if (headers.ip === 6) this.#neighbor(frame);
    this.#echo(frame);
    for (const listener of this.#listeners) listener(frame, headers);
  }

  #arp(frame: Uint8Array): void {
    const said = parseArp(frame, this.#headers);
    if (said === null || this.has(said.senderIp)) return;
    const { senderIp, senderMac } = said;
    const ours = this.has(said.targetIp);
    if (ours || this.neighbors.find(senderIp) !== null) this.neighbors.learn(senderIp, senderMac);
    if (!ours || said.operation !== ArpOperation.REQUEST) return;
    const { mac } = this.interface;
    const reply = { operation: ArpOperation.REPLY, senderMac: mac, senderIp: said.targetIp };
    const packet = arp({ ...reply, targetMac: senderMac, targetIp: senderIp });
    this.transmit(senderMac, EtherType.ARP, packet);
  }

  #neighbor(frame: Uint8Array): void {
    const said = parseNeighbor(frame, this.#headers);
    const from = formatIpv6(frame, this.#headers.l3 + 8);
    if (said?.type === "neighbor-advertisement" && said.mac !== undefined && !this.has(said.target))
      this.neighbors.learn(said.target, said.mac, said.router);
    if (said?.type !== "neighbor-solicitation" || !this.has(said.target)) return;
    const { target, mac } = said;
    // Without its MAC address it is asking whether somebody has the address: it has none to answer to.
    if (mac !== undefined && from !== "::") this.neighbors.learn(from, mac);
    const destination = from === "::" ? ALL_NODES : from;
    const reached = mac ?? multicastMac(ALL_NODES);
    const answer: NeighborMessage = {
      ...{ type: "neighbor-advertisement", target, mac: this.interface.mac },
      ...{ router: false, solicited: from !== "::", override: true },
    };
    this.transmit(reached, EtherType.IPV6, neighbor({ source: target, destination }, answer));
  }

  #echo(frame: Uint8Array): void {
    const { ip, l3 } = this.#headers;
    const request = parseEcho(frame, this.#headers);
    if (request?.type !== "request") return;
    const from = ip === 4 ? formatIpv4(frame, l3 + 12) : formatIpv6(frame, l3 + 8);
    const at = ip === 4 ? formatIpv4(frame, l3 + 16) : formatIpv6(frame, l3 + 24);
    if (!this.has(at)) return;
    const reply = echo({ source: at, destination: from }, { ...request, type: "reply" });
    // Nobody waits for an answer that cannot be delivered.
    this.sendIp(reply, from, new AbortController().signal).catch(() => {});
  }

  async #resolve(address: string, signal: AbortSignal): Promise<string> {
    const look = (): string | null => this.neighbors.find(address)?.mac ?? null;
    for (let asked = 0; asked < SOLICITATIONS; asked++) {
      const known = look();
      if (known !== null) return known;
      const answer = this.first(
        (frame, headers) => look() ?? this.#answer(frame, headers, address),
        SOLICIT_WAIT,
        signal,
      );
      this.#solicit(address);
      const mac = await answer;
      if (mac !== null) return mac;
    }
    throw new VirtioFault("TIMED_OUT", `${address}: Host is down`);
  }

  /** An ARP reply about an address that we asked for: learnt, though we did not know it. */
  #answer(frame: Uint8Array, headers: Headers, address: string): string | null {
    const reply = parseArp(frame, headers);
    if (reply?.operation !== ArpOperation.REPLY || reply.senderIp !== address) return null;
    this.neighbors.learn(address, reply.senderMac);
    return reply.senderMac;
  }

  #solicit(target: string): void {
    const source = this.sourceFor(target);
    const { mac } = this.interface;
    if (source === null) return;
    if (!isInet6(target)) {
      const request = { operation: ArpOperation.REQUEST, senderMac: mac, senderIp: source };
      const packet = arp({ ...request, targetMac: NO_MAC, targetIp: target });
      this.transmit(BROADCAST_MAC, EtherType.ARP, packet);
      return;
    }
    const destination = solicitedNode(target);
    const packet = neighbor(
      { source, destination },
      { type: "neighbor-solicitation", target, mac },
    );
    this.transmit(multicastMac(destination), EtherType.IPV6, packet);
  }

  /** Says that an address is ours: by an ARP request for it, or by asking whether another has it. */
  #announce(address: string): void {
    const { mac } = this.interface;
    if (isInet6(address)) {
      const destination = solicitedNode(address);
      const path = { source: "::", destination };
      const packet = neighbor(path, { type: "neighbor-solicitation", target: address });
      this.transmit(multicastMac(destination), EtherType.IPV6, packet);
      return;
    }
    const request = { operation: ArpOperation.REQUEST, senderMac: mac, senderIp: address };
    const packet = arp({ ...request, targetMac: NO_MAC, targetIp: address });
    this.transmit(BROADCAST_MAC, EtherType.ARP, packet);
  }

  /** Receives the groups that the addresses need. */
  async #joinGroups(): Promise<void> {
    const groups = ["224.0.0.1", ALL_NODES];
    for (const { address } of this.#addresses)
      if (isInet6(address)) groups.push(solicitedNode(address));
    await this.interface.setMulticast([...new Set(groups.map(multicastMac))]);
  }
}
