// What the device lets through (virtio 1.4 §5.1.9.5.1 to .3; FreeBSD's vtnet_rx_filter): kept here, told at each init and change.
import { MAC_SIZE } from "@virtio/core/net";
import { parseMac } from "@virtio/packets";

/** Addresses of a table (VTNET_MAX_MAC_ENTRIES). */
const TABLE_MAX = 128;
/** VLAN ids, as bits of words. */
const VLANS = 4096;

/** What is sent to the device. */
export interface MacTables {
  readonly unicast: Uint8Array;
  readonly multicast: Uint8Array;
}

export class Filters {
  promiscuous = false;
  allMulticast = false;
  readonly #vlans = new Uint32Array(VLANS / 32);
  #unicast: readonly Uint8Array[] = [];
  #multicast: readonly Uint8Array[] = [];

  /** @throws VirtioFault INVALID, nothing changed then */
  setUnicast(addresses: readonly string[]): void {
    this.#unicast = addresses.map(parseMac);
  }

  /** @throws VirtioFault INVALID, nothing changed then */
  setMulticast(addresses: readonly string[]): void {
    this.#multicast = addresses.map(parseMac);
  }

  get unicastOverflow(): boolean {
    return this.#unicast.length > TABLE_MAX;
  }

  get multicastOverflow(): boolean {
    return this.#multicast.length > TABLE_MAX;
  }

  /** A table that overflows is sent empty: everything passes then. Null: both do. */
  get tables(): MacTables | null {
    if (this.unicastOverflow && this.multicastOverflow) return null;
    return {
      unicast: table(this.unicastOverflow ? [] : this.#unicast),
      multicast: table(this.multicastOverflow ? [] : this.#multicast),
    };
  }

  hasVlan(id: number): boolean {
    return ((this.#vlans[id >>> 5] as number) & (1 << (id & 31))) !== 0;
  }

  setVlan(id: number, on: boolean): void {
    const word = id >>> 5;
    const bit = 1 << (id & 31);
    const before = this.#vlans[word] as number;
    this.#vlans[word] = on ? before | bit : before & ~bit;
  }

  /** Ids that pass, in order. */
  get vlans(): number[] {
    const ids: number[] = [];
    for (let id = 1; id < VLANS - 1; id++) if (this.hasVlan(id)) ids.push(id);
    return ids;
  }
}

/** le32 count, then the addresses. */
function table(addresses: readonly Uint8Array[]): Uint8Array {
  const bytes = new Uint8Array(4 + addresses.length * MAC_SIZE);
  new DataView(bytes.buffer).setUint32(0, addresses.length, true);
  for (const [i, address] of addresses.entries()) bytes.set(address, 4 + i * MAC_SIZE);
  return bytes;
}
