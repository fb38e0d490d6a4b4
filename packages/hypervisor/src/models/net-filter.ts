// Which received frames reach the driver: addresses and VLANs (virtio 1.4 §5.1.9.5.1 to §5.1.9.5.3).
import { MAC_SIZE, NetControlRx } from "@virtio/core/net";
import { ETHERNET_HEADER_SIZE, EtherType, get16, get32 } from "@virtio/packets";

const VLANS = 4096;

/** Addresses of one kind, as two numbers each. */
class AddressTable {
  readonly #high: Uint16Array;
  readonly #low: Uint32Array;
  count = 0;
  /** The driver asked for more than the table holds: every address is in it. */
  overflow = false;

  constructor(capacity: number) {
    this.#high = new Uint16Array(capacity);
    this.#low = new Uint32Array(capacity);
  }

  /** Takes `count` addresses from `bytes[offset]` on. */
  set(bytes: Uint8Array, offset: number, count: number): void {
    this.overflow = count > this.#high.length;
    this.count = this.overflow ? 0 : count;
    for (let i = 0; i < this.count; i++) {
      this.#high[i] = get16(bytes, offset + i * MAC_SIZE);
      this.#low[i] = get32(bytes, offset + i * MAC_SIZE + 2);
    }
  }

  has(bytes: Uint8Array, offset: number): boolean {
    if (this.overflow) return true;
    const high = get16(bytes, offset);
    const low = get32(bytes, offset + 2);
    for (let i = 0; i < this.count; i++)
      if (this.#low[i] === low && this.#high[i] === high) return true;
    return false;
  }

  /** Six bytes each. */
  addresses(): Uint8Array[] {
    return Array.from({ length: this.count }, (_, i) => {
      const low = this.#low[i] as number;
      const high = this.#high[i] as number;
      return Uint8Array.of(high >>> 8, high, low >>> 24, low >>> 16, low >>> 8, low);
    });
  }
}

/** The receive filter as the driver set it. */
export interface NetFilterState {
  /** By NetControlRx's names. */
  readonly modes: Readonly<Record<keyof typeof NetControlRx, boolean>>;
  /** Six bytes each. */
  readonly unicast: readonly Uint8Array[];
  readonly multicast: readonly Uint8Array[];
  readonly unicastOverflow: boolean;
  readonly multicastOverflow: boolean;
  readonly vlans: readonly number[];
}

/** The receive filter. */
export class NetFilter {
  readonly #mac: Uint8Array;
  readonly unicast: AddressTable;
  readonly multicast: AddressTable;
  /** Bits of NetControlRx. */
  #modes = 0;
  readonly #vlans = new Uint8Array(VLANS);
  /** The driver can set modes and addresses: without it there is nothing to filter by. */
  filtersAddresses = false;
  /** The driver can set VLANs. */
  filtersVlans = false;

  /** @param mac - the device's own address, in which it changes */
  constructor(mac: Uint8Array, capacity: number) {
    this.#mac = mac;
    this.unicast = new AddressTable(capacity);
    this.multicast = new AddressTable(capacity);
  }

  setMode(mode: NetControlRx, on: boolean): void {
    if (on) this.#modes |= 1 << mode;
    else this.#modes &= ~(1 << mode);
  }

  mode(mode: NetControlRx): boolean {
    return (this.#modes & (1 << mode)) !== 0;
  }

  setVlan(id: number, on: boolean): void {
    this.#vlans[id] = Number(on);
  }

  /** Whether the frame that begins at `bytes[offset]`, at least an Ethernet header, is for the driver. */
  passes(bytes: Uint8Array, offset: number, length: number): boolean {
    if (this.filtersVlans && get16(bytes, offset + 12) === EtherType.VLAN) {
      if (length < ETHERNET_HEADER_SIZE + 2) return false;
      // Id 0: a priority and no VLAN (IEEE 802.1Q).
      const id = get16(bytes, offset + 14) & 0xfff;
      if (id !== 0 && this.#vlans[id] === 0) return false;
    }
    return !this.filtersAddresses || this.#addressPasses(bytes, offset);
  }

  #addressPasses(bytes: Uint8Array, offset: number): boolean {
    if (this.mode(NetControlRx.PROMISC)) return true;
    if (((bytes[offset] as number) & 1) === 0) {
      if (this.mode(NetControlRx.NOUNI)) return false;
      return (
        this.#isOwn(bytes, offset) ||
        this.mode(NetControlRx.ALLUNI) ||
        this.unicast.has(bytes, offset)
      );
    }
    if (get16(bytes, offset) === 0xffff && get32(bytes, offset + 2) === 0xffff_ffff)
      return !this.mode(NetControlRx.NOBCAST);
    if (this.mode(NetControlRx.NOMULTI)) return false;
    return this.mode(NetControlRx.ALLMULTI) || this.multicast.has(bytes, offset);
  }

  #isOwn(bytes: Uint8Array, offset: number): boolean {
    const mac = this.#mac;
    for (let i = MAC_SIZE - 1; i >= 0; i--) if (bytes[offset + i] !== mac[i]) return false;
    return true;
  }

  /** As after a reset: no address but the device's own, and broadcast. */
  reset(): void {
    this.#modes = 0;
    this.#vlans.fill(0);
    this.unicast.set(this.#mac, 0, 0);
    this.multicast.set(this.#mac, 0, 0);
  }

  state(): NetFilterState {
    const modes = (Object.keys(NetControlRx) as (keyof typeof NetControlRx)[])
      .filter((name) => typeof NetControlRx[name] === "number")
      .map((name) => [name, this.mode(NetControlRx[name])] as const);
    return {
      modes: Object.fromEntries(modes) as NetFilterState["modes"],
      unicast: this.unicast.addresses(),
      multicast: this.multicast.addresses(),
      unicastOverflow: this.unicast.overflow,
      multicastOverflow: this.multicast.overflow,
      vlans: [...this.#vlans.keys()].filter((id) => this.#vlans[id] === 1),
    };
  }
}
