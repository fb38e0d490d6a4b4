// What a network device offers and says of itself: struct virtio_net_config (virtio 1.4 §5.1.3, §5.1.4).
import { ReservedFeature, VirtioFault } from "@virtio/core";
import {
  MAC_SIZE,
  NET_HEADER_HASH_SIZE,
  NET_HEADER_LEGACY_SIZE,
  NET_HEADER_SIZE,
  NetConfig,
  type NetConfigField,
  NetFeature,
  NetStatus,
} from "@virtio/core/net";
import { parseMac } from "@virtio/packets";
import { hasBit } from "../feature-words.js";
import type { NetBackend } from "../net-backend.js";
import type { RegisterSpace } from "../registers.js";
import { HASH_KEY_SIZE, SUPPORTED_HASH_TYPES } from "./net-hash.js";

/** What a network device says of itself besides. What is left out is as QEMU has it. */
export interface NetCharacteristics {
  /** Mbit/s: SPEED_DUPLEX is offered. */
  readonly speed?: number | undefined;
  /** SPEED_DUPLEX is offered. */
  readonly duplex?: "full" | "half" | undefined;
  /** Addresses of each kind, unicast and multicast, that the receive filter holds: beyond it all of the kind pass. Default 64. */
  readonly macTable?: number | undefined;
  /** With RSS: entries of the indirection table, a power of two from 128 on. Default 128. */
  readonly indirectionTable?: number | undefined;
  /** With GUEST_CSUM: a received frame whose checksum is right comes with a partial one (NEEDS_CSUM), as from another guest. Default false. */
  readonly partialChecksums?: boolean | undefined;
}

/** Bytes of the configuration: what follows is of HASH_TUNNEL, which is not offered. */
const CONFIG_LENGTH = 24;

/** Most pairs of queues: their doorbells fit the page that functions have for them. */
const PAIRS_MAX = 256;

/** Offered unless held back: what QEMU's device offers. */
const offeredByDefault: readonly NetFeature[] = [
  NetFeature.CSUM,
  NetFeature.GUEST_CSUM,
  NetFeature.CTRL_GUEST_OFFLOADS,
  NetFeature.MAC,
  NetFeature.GSO,
  NetFeature.GUEST_TSO4,
  NetFeature.GUEST_TSO6,
  NetFeature.GUEST_ECN,
  NetFeature.HOST_TSO4,
  NetFeature.HOST_TSO6,
  NetFeature.HOST_ECN,
  NetFeature.HOST_USO,
  NetFeature.MRG_RXBUF,
  NetFeature.STATUS,
  NetFeature.CTRL_VQ,
  NetFeature.CTRL_RX,
  NetFeature.CTRL_VLAN,
  NetFeature.CTRL_RX_EXTRA,
  NetFeature.GUEST_ANNOUNCE,
  NetFeature.CTRL_MAC_ADDR,
];

/** Offered when named. QEMU's device fragments, and puts datagrams together, only where its wire does. */
const offeredOnDemand: readonly NetFeature[] = [
  NetFeature.GUEST_UFO,
  NetFeature.HOST_UFO,
  NetFeature.VQ_NOTF_COAL,
  NetFeature.NOTF_COAL,
  NetFeature.GUEST_USO4,
  NetFeature.GUEST_USO6,
  NetFeature.HASH_REPORT,
  NetFeature.GUEST_HDRLEN,
  NetFeature.RSS,
];

/** Of these, what the legacy interface alone offers (§5.1.3.2). */
export const netLegacyFeatures: readonly NetFeature[] = [NetFeature.GSO];

/** Features that a specification can name. MTU, MQ and SPEED_DUPLEX come with what they speak of. */
export const netModelFeatures: readonly NetFeature[] = [...offeredByDefault, ...offeredOnDemand];

/** Which features need which (§5.1.3.1), as far as one needs one. */
export const netPrerequisites: readonly (readonly [bit: NetFeature, needs: NetFeature])[] = [
  [NetFeature.GUEST_TSO4, NetFeature.GUEST_CSUM],
  [NetFeature.GUEST_TSO6, NetFeature.GUEST_CSUM],
  [NetFeature.GUEST_UFO, NetFeature.GUEST_CSUM],
  [NetFeature.GUEST_USO4, NetFeature.GUEST_CSUM],
  [NetFeature.GUEST_USO6, NetFeature.GUEST_CSUM],
  [NetFeature.HOST_TSO4, NetFeature.CSUM],
  [NetFeature.HOST_TSO6, NetFeature.CSUM],
  [NetFeature.HOST_UFO, NetFeature.CSUM],
  [NetFeature.HOST_USO, NetFeature.CSUM],
  [NetFeature.CTRL_RX, NetFeature.CTRL_VQ],
  [NetFeature.CTRL_VLAN, NetFeature.CTRL_VQ],
  [NetFeature.GUEST_ANNOUNCE, NetFeature.CTRL_VQ],
  [NetFeature.MQ, NetFeature.CTRL_VQ],
  [NetFeature.CTRL_MAC_ADDR, NetFeature.CTRL_VQ],
  [NetFeature.VQ_NOTF_COAL, NetFeature.CTRL_VQ],
  [NetFeature.NOTF_COAL, NetFeature.CTRL_VQ],
  [NetFeature.RSS, NetFeature.CTRL_VQ],
];

/** The same where one of two is enough. */
const eitherOf: readonly (readonly [bit: NetFeature, one: NetFeature, other: NetFeature])[] = [
  [NetFeature.GUEST_ECN, NetFeature.GUEST_TSO4, NetFeature.GUEST_TSO6],
  [NetFeature.HOST_ECN, NetFeature.HOST_TSO4, NetFeature.HOST_TSO6],
];

/** What a device does not offer without another feature, though a driver may accept it so: §5.1.4.1, §5.1.9.5.9; GSO needs NEEDS_CSUM. */
const offeredWith: readonly (readonly [bit: NetFeature, needs: NetFeature])[] = [
  [NetFeature.CTRL_GUEST_OFFLOADS, NetFeature.CTRL_VQ],
  [NetFeature.CTRL_RX_EXTRA, NetFeature.CTRL_VQ],
  [NetFeature.HASH_REPORT, NetFeature.CTRL_VQ],
  [NetFeature.GSO, NetFeature.CSUM],
];

/** Feature that gates each configuration field by its offset (§5.1.4). */
const gates: readonly (readonly [from: number, to: number, feature: NetFeature])[] = [
  [0, MAC_SIZE, NetFeature.MAC],
  [6, 8, NetFeature.STATUS],
  [10, 12, NetFeature.MTU],
  [12, 17, NetFeature.SPEED_DUPLEX],
];

/** What the configuration is made of. */
export interface NetConfigurationOptions {
  readonly backend: NetBackend;
  /** `52:54:00:12:34:56` */
  readonly mac: string;
  /** Pairs of queues; MQ is offered when there are several. */
  readonly queues: number;
  /** Undefined: MTU is not offered. */
  readonly mtu: number | undefined;
  /** By the specification's names, what to offer and what to hold back. */
  readonly features: Readonly<Record<string, boolean>>;
  readonly characteristics: NetCharacteristics;
}

/** The device's configuration space, and the address it now has. */
export class NetConfiguration implements RegisterSpace {
  readonly length: number = CONFIG_LENGTH;
  readonly offered: readonly NetFeature[];
  readonly pairs: number;
  /** Undefined: none is advised. */
  readonly mtu: number | undefined;
  /** Entries that an indirection table may have. */
  readonly indirectionTable: number;
  /** The address that the device filters by. */
  readonly mac: Uint8Array;
  /** The driver is asked to announce itself. */
  announcing = false;
  readonly #ownMac: Uint8Array;
  readonly #backend: NetBackend;
  readonly #bytes = new DataView(new ArrayBuffer(CONFIG_LENGTH));
  #accepted: ArrayLike<number> = [];

  /** @throws VirtioFault INVALID */
  constructor(options: NetConfigurationOptions) {
    const { backend, queues, mtu, characteristics } = options;
    const { speed, duplex, indirectionTable = 128 } = characteristics;
    const refuse = (what: string): never => {
      throw new VirtioFault("INVALID", `network device: ${what}`);
    };
    if (!Number.isInteger(queues) || queues < 1 || queues > PAIRS_MAX)
      refuse(`${queues} pairs of queues, not 1 to ${PAIRS_MAX}`);
    if (mtu !== undefined && (!Number.isInteger(mtu) || mtu < 68 || mtu > 0xffff))
      refuse(`an MTU of ${mtu} is not 68 to 65535`);
    if (mtu !== undefined && mtu + 18 > backend.maxFrame)
      refuse(`an MTU of ${mtu} on a wire that takes frames of ${backend.maxFrame} bytes`);
    if (speed !== undefined && (!Number.isInteger(speed) || speed < 0 || speed > 0x7fff_ffff))
      refuse(`a speed of ${speed} Mbit/s`);
    if (indirectionTable < 128 || indirectionTable > 0x8000 || !isPowerOf2(indirectionTable))
      refuse(`an indirection table of ${indirectionTable} is not a power of 2 from 128 to 32768`);
    this.#backend = backend;
    this.#ownMac = parseMac(options.mac);
    if (((this.#ownMac[0] as number) & 1) !== 0) refuse(`${options.mac} is a group address`);
    this.mac = this.#ownMac.slice();
    this.pairs = queues;
    this.mtu = mtu;
    this.indirectionTable = indirectionTable;
    this.offered = offer(options);
    const has = (bit: NetFeature): boolean => this.offered.includes(bit);
    if (has(NetFeature.MQ) || has(NetFeature.RSS)) this.#set("maxVirtqueuePairs", queues);
    this.#set("mtu", mtu ?? 0);
    if (has(NetFeature.SPEED_DUPLEX)) {
      this.#set("speed", speed ?? 0xffff_ffff);
      this.#set("duplex", duplex === undefined ? 0xff : Number(duplex === "full"));
    }
    if (has(NetFeature.RSS) || has(NetFeature.HASH_REPORT)) {
      this.#set("rssMaxKeySize", HASH_KEY_SIZE);
      this.#set("supportedHashTypes", SUPPORTED_HASH_TYPES);
    }
    if (has(NetFeature.RSS)) this.#set("rssMaxIndirectionTableLength", indirectionTable);
  }

  #set(field: NetConfigField, value: number): void {
    const [offset, width] = NetConfig[field];
    if (width === 1) this.#bytes.setUint8(offset, value);
    else if (width === 2) this.#bytes.setUint16(offset, value, true);
    else this.#bytes.setUint32(offset, value, true);
  }

  /** @param accepted - words of the bits the driver accepted, in which they change */
  connect(accepted: ArrayLike<number>): void {
    this.#accepted = accepted;
  }

  has(bit: NetFeature | ReservedFeature): boolean {
    return hasBit(this.#accepted, bit);
  }

  /** Whether the device can run with what the driver accepted. */
  get acceptable(): boolean {
    return eitherOf.every(
      ([bit, one, other]) => !this.has(bit) || this.has(one) || this.has(other),
    );
  }

  /** Bytes of the header of each frame (§5.1.9, §5.1.9.1). */
  get headerSize(): number {
    if (this.has(NetFeature.HASH_REPORT)) return NET_HEADER_HASH_SIZE;
    return this.has(ReservedFeature.VERSION_1) || this.has(NetFeature.MRG_RXBUF)
      ? NET_HEADER_SIZE
      : NET_HEADER_LEGACY_SIZE;
  }

  /** Index of the control queue (§5.1.2); -1: there is none. */
  get controlQueue(): number {
    if (!this.has(NetFeature.CTRL_VQ)) return -1;
    return this.has(NetFeature.MQ) || this.has(NetFeature.RSS) ? 2 * this.pairs : 2;
  }

  /** Pairs of queues that the driver may enable. */
  get maxPairs(): number {
    return this.has(NetFeature.MQ) || this.has(NetFeature.RSS) ? this.pairs : 1;
  }

  gate(offset: number): NetFeature | undefined {
    return gates.find(([from, to]) => offset >= from && offset < to)?.[2];
  }

  read(offset: number, width: 1 | 2 | 4): number {
    // A device without MAC shows none.
    if (this.offered.includes(NetFeature.MAC))
      for (let i = 0; i < MAC_SIZE; i++) this.#bytes.setUint8(i, this.mac[i] as number);
    if (this.offered.includes(NetFeature.STATUS)) this.#set("status", this.#status);
    if (width === 1) return this.#bytes.getUint8(offset);
    return width === 2 ? this.#bytes.getUint16(offset, true) : this.#bytes.getUint32(offset, true);
  }

  get #status(): number {
    const link = this.#backend.linkUp ? NetStatus.LINK_UP : 0;
    return link | (this.announcing ? NetStatus.ANNOUNCE : 0);
  }

  /** Only a legacy driver writes: its address, byte by byte (§5.1.9.5.2.3). */
  write(offset: number, width: 1 | 2 | 4, value: number): void {
    if (this.has(ReservedFeature.VERSION_1)) return;
    for (let i = 0; i < width && offset + i < MAC_SIZE; i++)
      this.mac[offset + i] = value >>> (8 * i);
  }

  /** As after a reset. */
  reset(): void {
    this.mac.set(this.#ownMac);
    this.announcing = false;
  }
}

/** @throws VirtioFault INVALID for a feature that was named and lacks what it needs */
function offer({ queues, mtu, features, characteristics }: NetConfigurationOptions): NetFeature[] {
  const { speed, duplex } = characteristics;
  let offered = netModelFeatures.filter(
    (bit) => features[NetFeature[bit]] ?? offeredByDefault.includes(bit),
  );
  if (queues > 1) offered.push(NetFeature.MQ);
  if (mtu !== undefined) offered.push(NetFeature.MTU);
  if (speed !== undefined || duplex !== undefined) offered.push(NetFeature.SPEED_DUPLEX);
  const lacks = (bit: NetFeature): boolean => {
    const has = (other: NetFeature): boolean => offered.includes(other);
    return (
      [...netPrerequisites, ...offeredWith].some(
        ([dependent, needs]) => dependent === bit && !has(needs),
      ) || eitherOf.some(([dependent, one, other]) => dependent === bit && !has(one) && !has(other))
    );
  };
  // What was held back takes along what needs it; twice, as what needs that needs nothing else.
  for (let round = 0; round < 2; round++) {
    const lacking = offered.filter(lacks);
    const wanted = lacking.find((bit) => features[NetFeature[bit]] === true || !isDefault(bit));
    if (wanted !== undefined)
      throw new VirtioFault(
        "INVALID",
        `network device: ${NetFeature[wanted]} cannot be offered without what it needs`,
      );
    offered = offered.filter((bit) => !lacking.includes(bit));
  }
  return offered;
}

const isDefault = (bit: NetFeature): boolean => offeredByDefault.includes(bit);
const isPowerOf2 = (n: number): boolean => Number.isInteger(n) && (n & (n - 1)) === 0;
