// The memory balloon of the embedded machine: how one says which.
import type { BalloonOptions, BalloonSpec } from "@virtio/core";
import { BalloonFeature } from "@virtio/core/balloon";
import type { DeviceKind } from "./device-kind.js";
import { type BalloonCharacteristics, type BalloonLies, BalloonModel } from "./models/balloon.js";
import { balloonModelFeatures } from "./models/balloon-config.js";
import { BalloonPort } from "./models/balloon-port.js";

/** A memory balloon of the embedded machine. */
export interface EmbeddedBalloonSpec extends EmbeddedBalloonOptions {
  readonly kind: "balloon";
}

/** What only the embedded machine's balloon takes besides. */
export interface EmbeddedBalloonOptions extends BalloonOptions, BalloonCharacteristics {
  /** The device's back: its target, and what the guest says. */
  readonly port?: BalloonPort | undefined;
  /** A device that lies; for tests of drivers. */
  readonly lies?: BalloonLies | undefined;
}

/** A memory balloon: `embedded({ devices: [balloon({ port: new BalloonPort() })] })`. */
export function balloon(options: EmbeddedBalloonOptions = {}): EmbeddedBalloonSpec {
  return { kind: "balloon", ...options };
}

/** {@inheritDoc DeviceKind} */
export const balloonKind: DeviceKind<BalloonSpec | EmbeddedBalloonSpec> = {
  hasFeature: (name) =>
    balloonModelFeatures.includes(BalloonFeature[name as keyof typeof BalloonFeature]),
  refuse() {},
  async make(spec, { name }) {
    const embedded: EmbeddedBalloonSpec = spec;
    return new BalloonModel({
      name,
      features: spec.features ?? {},
      characteristics: embedded,
      port: embedded.port ?? new BalloonPort(),
      lies: embedded.lies ?? {},
    });
  },
};
