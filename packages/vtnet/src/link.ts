// What the configuration says of the link (virtio 1.4 §5.1.4).
import type { ConfigSpace, FeatureSet } from "@virtio/core";
import { NetFeature, NetStatus } from "@virtio/core/net";
import { type Features, fieldsOf } from "./features.js";

/** Largest speed; above it nothing is known (§5.1.4.2). Mbit/s. */
const SPEED_MAX = 0x7fff_ffff;

/** As NetworkInterface has it. */
export interface Link {
  readonly up: boolean;
  /** Mbit/s; null: unknown. */
  readonly speed: number | null;
  readonly duplex: "full" | "half" | null;
}

/** A link, and whether the device asks for an announcement. */
export interface LinkStatus extends Link {
  readonly announce: boolean;
}

/** Without STATUS the link is up. @throws VirtioFault what reading throws */
export async function readLink(
  config: ConfigSpace,
  features: FeatureSet<Features>,
): Promise<LinkStatus> {
  const fields = {
    ...(features.has(NetFeature.STATUS) ? fieldsOf("status") : {}),
    ...(features.has(NetFeature.SPEED_DUPLEX) ? fieldsOf("speed", "duplex") : {}),
  };
  const values: Record<string, number> =
    Object.keys(fields).length === 0 ? {} : await config.readAll<string>(fields);
  const { status = NetStatus.LINK_UP, speed = -1, duplex = -1 } = values;
  return {
    up: (status & NetStatus.LINK_UP) !== 0,
    speed: speed >= 0 && speed <= SPEED_MAX ? speed : null,
    duplex: duplex === 1 ? "full" : duplex === 0 ? "half" : null,
    announce: features.has(NetFeature.GUEST_ANNOUNCE) && (status & NetStatus.ANNOUNCE) !== 0,
  };
}
