// Features of network devices (virtio 1.4 §5.1.3): which are asked for, what is printed of them, and what an interface can do by them.
import {
  type FeatureName,
  type FeatureSet,
  featureSet,
  InterfaceCapability,
  ReservedFeature,
} from "@virtio/core";
import { NetFeature } from "@virtio/core/net";

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
export const receiveSegments: readonly NetFeature[] = [
  NetFeature.GUEST_TSO4,
  NetFeature.GUEST_TSO6,
  NetFeature.GUEST_ECN,
  NetFeature.GUEST_UFO,
  NetFeature.GUEST_USO4,
  NetFeature.GUEST_USO6,
];

/** Frames to transmit that hold several segments. */
export const transmitSegments: readonly NetFeature[] = [
  NetFeature.GSO,
  NetFeature.HOST_TSO4,
  NetFeature.HOST_TSO6,
  NetFeature.HOST_ECN,
  NetFeature.HOST_UFO,
  NetFeature.HOST_USO,
];

/** All that is asked for, unless a tunable says otherwise. */
export const base: FeatureSet<Features> = featureSet<Features>().with(
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
