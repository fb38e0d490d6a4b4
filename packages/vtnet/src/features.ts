// What vtnet asks a network device for (virtio 1.4 §5.1.3), and the names that are printed.
import {
  type ConfigField,
  type DriverContext,
  type FeatureName,
  type FeatureSet,
  featureSet,
  InterfaceCapability,
  ReservedFeature,
  type VirtioDevice,
} from "@virtio/core";
import {
  MAC_SIZE,
  NET_PAIRS_MAX,
  NetConfig,
  type NetConfigField,
  NetFeature,
} from "@virtio/core/net";
import { MAX_PAIRS } from "./options.js";

export type Features = NetFeature | ReservedFeature;

/** FreeBSD's names (virtio_net.h), and which needs which (virtio 1.4 §5.1.3.1); of what it does not know, in its manner. */
export const featureNames: readonly FeatureName[] = [
  { bit: NetFeature.CSUM, name: "TxChecksum" },
  { bit: NetFeature.GUEST_CSUM, name: "RxChecksum" },
  {
    bit: NetFeature.CTRL_GUEST_OFFLOADS,
    name: "CtrlRxOffloads",
    requires: [[NetFeature.CTRL_VQ]],
  },
  { bit: NetFeature.MTU, name: "MTU" },
  { bit: NetFeature.MAC, name: "MAC" },
  { bit: NetFeature.GSO, name: "TxGSO", requires: [[NetFeature.CSUM]] },
  { bit: NetFeature.GUEST_TSO4, name: "RxLROv4", requires: [[NetFeature.GUEST_CSUM]] },
  { bit: NetFeature.GUEST_TSO6, name: "RxLROv6", requires: [[NetFeature.GUEST_CSUM]] },
  {
    bit: NetFeature.GUEST_ECN,
    name: "RxLROECN",
    requires: [[NetFeature.GUEST_TSO4, NetFeature.GUEST_TSO6]],
  },
  { bit: NetFeature.GUEST_UFO, name: "RxUFO", requires: [[NetFeature.GUEST_CSUM]] },
  { bit: NetFeature.HOST_TSO4, name: "TxTSOv4", requires: [[NetFeature.CSUM]] },
  { bit: NetFeature.HOST_TSO6, name: "TxTSOv6", requires: [[NetFeature.CSUM]] },
  {
    bit: NetFeature.HOST_ECN,
    name: "TxTSOECN",
    requires: [[NetFeature.HOST_TSO4, NetFeature.HOST_TSO6]],
  },
  { bit: NetFeature.HOST_UFO, name: "TxUFO", requires: [[NetFeature.CSUM]] },
  { bit: NetFeature.MRG_RXBUF, name: "MrgRxBuf" },
  { bit: NetFeature.STATUS, name: "Status" },
  { bit: NetFeature.CTRL_VQ, name: "CtrlVq" },
  { bit: NetFeature.CTRL_RX, name: "CtrlRxMode", requires: [[NetFeature.CTRL_VQ]] },
  { bit: NetFeature.CTRL_VLAN, name: "CtrlVLANFilter", requires: [[NetFeature.CTRL_VQ]] },
  { bit: NetFeature.CTRL_RX_EXTRA, name: "CtrlRxModeExtra", requires: [[NetFeature.CTRL_VQ]] },
  { bit: NetFeature.GUEST_ANNOUNCE, name: "GuestAnnounce", requires: [[NetFeature.CTRL_VQ]] },
  { bit: NetFeature.MQ, name: "Multiqueue", requires: [[NetFeature.CTRL_VQ]] },
  { bit: NetFeature.CTRL_MAC_ADDR, name: "CtrlMacAddr", requires: [[NetFeature.CTRL_VQ]] },
  { bit: NetFeature.HASH_TUNNEL, name: "HashTunnel" },
  { bit: NetFeature.VQ_NOTF_COAL, name: "VqNotfCoal", requires: [[NetFeature.CTRL_VQ]] },
  { bit: NetFeature.NOTF_COAL, name: "NotfCoal", requires: [[NetFeature.CTRL_VQ]] },
  { bit: NetFeature.GUEST_USO4, name: "RxUSOv4", requires: [[NetFeature.GUEST_CSUM]] },
  { bit: NetFeature.GUEST_USO6, name: "RxUSOv6", requires: [[NetFeature.GUEST_CSUM]] },
  { bit: NetFeature.HOST_USO, name: "TxUSO", requires: [[NetFeature.CSUM]] },
  { bit: NetFeature.HASH_REPORT, name: "HashReport", requires: [[NetFeature.CTRL_VQ]] },
  { bit: NetFeature.GUEST_HDRLEN, name: "TxHdrLen" },
  { bit: NetFeature.RSS, name: "RSS", requires: [[NetFeature.CTRL_VQ]] },
  { bit: NetFeature.RSC_EXT, name: "RscExt" },
  { bit: NetFeature.STANDBY, name: "Standby" },
  { bit: NetFeature.SPEED_DUPLEX, name: "SpeedDuplex" },
];

/** Received frames that hold several segments: LRO, and of UDP. */
const receiveSegments = [
  NetFeature.GUEST_TSO4,
  NetFeature.GUEST_TSO6,
  NetFeature.GUEST_ECN,
  NetFeature.GUEST_UFO,
  NetFeature.GUEST_USO4,
  NetFeature.GUEST_USO6,
] as const;

/** Frames to transmit that hold several segments. */
const transmitSegments = [
  NetFeature.GSO,
  NetFeature.HOST_TSO4,
  NetFeature.HOST_TSO6,
  NetFeature.HOST_ECN,
  NetFeature.HOST_UFO,
  NetFeature.HOST_USO,
] as const;

const base: FeatureSet<Features> = featureSet<Features>().with(
  NetFeature.CSUM,
  NetFeature.GUEST_CSUM,
  NetFeature.CTRL_GUEST_OFFLOADS,
  NetFeature.MTU,
  NetFeature.MAC,
  NetFeature.MRG_RXBUF,
  NetFeature.STATUS,
  NetFeature.CTRL_VQ,
  NetFeature.CTRL_RX,
  NetFeature.CTRL_VLAN,
  NetFeature.GUEST_ANNOUNCE,
  NetFeature.MQ,
  NetFeature.RSS,
  NetFeature.HASH_REPORT,
  NetFeature.CTRL_MAC_ADDR,
  NetFeature.NOTF_COAL,
  NetFeature.GUEST_HDRLEN,
  NetFeature.SPEED_DUPLEX,
  ...receiveSegments,
  ...transmitSegments,
  ReservedFeature.INDIRECT_DESC,
  ReservedFeature.EVENT_IDX,
);

/** IPv4's and this driver's largest MTU (vtnet(4)), and the smallest that IPv4 allows (RFC 791). */
export const MTU_MIN = 68;
export const MTU_MAX = 9216;

/**
 * Most pairs a device may have that is driven as multiqueue. The control queue is behind them all, so all must be allocated: 2 MiB of
 * rings of 256 descriptors for this many.
 */
const DEVICE_PAIRS_MAX = 128;

/** Of receive-side scaling and hash reports. */
export interface HashLimits {
  /** Bytes. */
  readonly keySize: number;
  /** Entries. */
  readonly tableLength: number;
  /** Bits of NetHash. */
  readonly types: number;
}

/** What driver and device agreed on, and what the configuration says once and for all. */
export interface Settled {
  readonly features: FeatureSet<Features>;
  /** Pairs that the device has: the control queue is at twice this (virtio 1.4 §5.1.2). */
  readonly devicePairs: number;
  /** Pairs that are to be used. */
  readonly pairs: number;
  /** The device's address; null: it has none. */
  readonly mac: Uint8Array | null;
  /** The device's advice; null: it gives none. */
  readonly mtu: number | null;
  /** What the device can do with RSS or HASH_REPORT (virtio 1.4 §5.1.4). */
  readonly hashing: HashLimits;
}

/** The fields of `names` that were negotiated. */
export const fieldsOf = (
  ...names: readonly NetConfigField[]
): Partial<Record<NetConfigField, ConfigField>> =>
  Object.fromEntries(names.map((name) => [name, NetConfig[name]]));

/**
 * Of what is offered, what goes together, in FreeBSD's order of dropping. Not finalized yet.
 *
 * @throws VirtioFault what negotiation and reading the configuration throw
 */
export async function settle(device: VirtioDevice, context: DriverContext): Promise<Settled> {
  const { tunables, log, cpus } = context;
  const on = (name: string): boolean => tunables.number(name) !== 0;
  let wanted = base;
  const noCsum = on("csum_disable");
  if (noCsum) wanted = wanted.without(NetFeature.CSUM, NetFeature.GUEST_CSUM);
  if (noCsum || on("tso_disable")) wanted = wanted.without(...transmitSegments);
  if (noCsum || on("lro_disable")) wanted = wanted.without(...receiveSegments);
  if (on("mq_disable")) wanted = wanted.without(NetFeature.MQ, NetFeature.RSS);
  let features = await device.negotiate(wanted);
  // A bit of the legacy interface (§5.1.3.2).
  if (features.has(ReservedFeature.VERSION_1)) wanted = wanted.without(NetFeature.GSO);

  const macFields = Object.fromEntries(
    Array.from({ length: MAC_SIZE }, (_, i): [string, ConfigField] => [`mac${i}`, [i, 1]]),
  );
  const config: Record<string, number> = await device.config.readAll<string>({
    ...(features.has(NetFeature.MAC) ? macFields : {}),
    ...(features.has(NetFeature.MTU) ? fieldsOf("mtu") : {}),
    ...(features.has(NetFeature.MQ) || features.has(NetFeature.RSS)
      ? fieldsOf("maxVirtqueuePairs")
      : {}),
    ...(features.has(NetFeature.RSS) || features.has(NetFeature.HASH_REPORT)
      ? fieldsOf("rssMaxKeySize", "rssMaxIndirectionTableLength", "supportedHashTypes")
      : {}),
  });

  let mtu = config["mtu"] ?? null;
  // Without merging, one buffer must take a frame of the device's MTU (§5.1.4.2).
  const unfit = mtu !== null && mtu > MTU_MAX && !features.has(NetFeature.MRG_RXBUF);
  if (mtu !== null && (mtu < MTU_MIN || unfit)) {
    log(`Invalid MTU value: ${mtu}. MTU feature disabled.`);
    wanted = wanted.without(NetFeature.MTU);
    mtu = null;
  }

  let devicePairs = config["maxVirtqueuePairs"] ?? 1;
  if (devicePairs < 1 || devicePairs > NET_PAIRS_MAX) {
    log(`Invalid max_virtqueue_pairs value: ${devicePairs}. Multiqueue feature disabled.`);
    devicePairs = 1;
  } else if (devicePairs > DEVICE_PAIRS_MAX) {
    log(`max_virtqueue_pairs value ${devicePairs} is too large. Multiqueue feature disabled.`);
    devicePairs = 1;
  }
  const most = tunables.number("mq_max_pairs") || MAX_PAIRS;
  const pairs = Math.min(devicePairs, most, cpus);
  if (pairs === 1) {
    wanted = wanted.without(NetFeature.MQ, NetFeature.RSS);
    devicePairs = 1;
  }
  const hashing = {
    keySize: config["rssMaxKeySize"] ?? 0,
    tableLength: config["rssMaxIndirectionTableLength"] ?? 0,
    types: config["supportedHashTypes"] ?? 0,
  };

  if (
    receiveSegments.some((bit) => features.has(bit)) &&
    !features.has(NetFeature.MRG_RXBUF) &&
    !features.has(ReservedFeature.INDIRECT_DESC)
  ) {
    log("LRO disabled due to both mergeable buffers and indirect descriptors not negotiated");
    wanted = wanted.without(...receiveSegments);
  }
  features = await device.negotiate(wanted);
  const mac = features.has(NetFeature.MAC)
    ? Uint8Array.from({ length: MAC_SIZE }, (_, i) => config[`mac${i}`] ?? 0)
    : null;
  return { features, devicePairs, pairs, mac, mtu, hashing };
}

const { TXCSUM, TXCSUM_IPV6, RXCSUM, RXCSUM_IPV6, TSO4, TSO6, LRO, VLAN_MTU } = InterfaceCapability;
const { VLAN_HWTAGGING, VLAN_HWCSUM, VLAN_HWFILTER, VLAN_HWTSO, JUMBO_MTU, LINKSTATE } =
  InterfaceCapability;

/** What an interface can do by these features (vtnet_setup_interface). */
export function capabilitiesOf(
  features: FeatureSet<Features>,
  maxMtu: number,
): Set<InterfaceCapability> {
  const set = new Set<InterfaceCapability>([VLAN_MTU]);
  const add = (condition: boolean, ...capabilities: InterfaceCapability[]): void => {
    if (condition) for (const capability of capabilities) set.add(capability);
  };
  const gso = features.has(NetFeature.GSO);
  const tso4 = gso || features.has(NetFeature.HOST_TSO4);
  const tso6 = gso || features.has(NetFeature.HOST_TSO6);
  const csum = features.has(NetFeature.CSUM);
  const guestCsum = features.has(NetFeature.GUEST_CSUM);
  add(csum, TXCSUM, TXCSUM_IPV6);
  add(tso4, TSO4);
  add(tso6, TSO6);
  add(tso4 || tso6, VLAN_HWTSO);
  add(guestCsum, RXCSUM, RXCSUM_IPV6);
  add(
    receiveSegments.some((bit) => features.has(bit)),
    LRO,
  );
  add(csum || guestCsum, VLAN_HWTAGGING, VLAN_HWCSUM);
  add(features.has(NetFeature.CTRL_VLAN), VLAN_HWFILTER);
  add(maxMtu >= 9000, JUMBO_MTU);
  add(features.has(NetFeature.STATUS), LINKSTATE);
  return set;
}

/** Of all features that were settled, those for the capabilities that are switched on (vtnet_negotiate_features). */
export function featuresFor(
  all: FeatureSet<Features>,
  enabled: ReadonlySet<InterfaceCapability>,
): FeatureSet<Features> {
  let features = all;
  const rxcsum = enabled.has(RXCSUM);
  if (!rxcsum) features = features.without(NetFeature.GUEST_CSUM);
  if (!rxcsum || !enabled.has(LRO)) features = features.without(...receiveSegments);
  // A device that filters takes nothing of a VLAN it was not told of.
  if (!enabled.has(VLAN_HWFILTER)) features = features.without(NetFeature.CTRL_VLAN);
  return features;
}

/** Features that CTRL_GUEST_OFFLOADS switches while the device runs (virtio 1.4 §5.1.9.5.9). Bits, low word and high word. */
export function guestOffloads(features: FeatureSet<Features>): readonly [number, number] {
  const set = featureSet<Features>().with(NetFeature.GUEST_CSUM, ...receiveSegments);
  const [low = 0, high = 0] = features.intersect(set).words();
  return [low, high];
}

/** Whether the device may hand over frames that hold several segments. */
export const receivesSegments = (features: FeatureSet<Features>): boolean =>
  receiveSegments.some((bit) => features.has(bit));

/** Whether frames that hold several segments may be transmitted. */
export const transmitsSegments = (features: FeatureSet<Features>): boolean =>
  transmitSegments.some((bit) => features.has(bit));

/** The same without what a ring has no room for: it is dropped at the next reset, which is before the device has any buffer. */
export function withoutReceiveSegments(settled: Settled): Settled {
  return { ...settled, features: settled.features.without(...receiveSegments) };
}
