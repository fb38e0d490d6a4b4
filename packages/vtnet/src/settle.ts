// What driver and device agree on, and what the configuration says once and for all (virtio 1.4 §3.1.1, §5.1.4).
import {
  type ConfigField,
  type DriverContext,
  type FeatureSet,
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
import { base, type Features, receiveSegments, transmitSegments } from "./features.js";
import { MAX_PAIRS } from "./options.js";

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
