// The SCSI host of the embedded machine: how one says which.
import type { ScsiOptions, ScsiSpec } from "@virtio/core";
import { ScsiFeature } from "@virtio/core/scsi";
import type { BlockBackend } from "./block-backend.js";
import type { DeviceKind } from "./device-kind.js";
import { openMedium } from "./medium.js";
import { ScsiModel } from "./models/scsi.js";
import { type ScsiCharacteristics, scsiModelFeatures } from "./models/scsi-config.js";
import type { ScsiLies } from "./models/scsi-lies.js";
import { ScsiPort } from "./models/scsi-port.js";
import type { ScsiUnitOptions } from "./models/scsi-unit-options.js";

/** A SCSI host of the embedded machine. */
export interface EmbeddedScsiSpec extends EmbeddedScsiOptions {
  readonly kind: "scsi";
}

/** What only the embedded machine's SCSI host takes besides. */
export interface EmbeddedScsiOptions extends ScsiOptions, ScsiCharacteristics {
  /** Stands in for `file` and `size`. */
  readonly backend?: BlockBackend | undefined;
  /** The units, in place of the one disk that the other options describe; none of those goes with it. May be empty. */
  readonly luns?: readonly ScsiUnitOptions[] | undefined;
  /** The device's back, by which units come, go and change. */
  readonly port?: ScsiPort | undefined;
  /** A device that lies; for tests of drivers. */
  readonly lies?: ScsiLies | undefined;
}

/** A SCSI host: `embedded({ devices: [scsi({ size: 1 << 20, target: 1 })] })`. */
export function scsi(options: EmbeddedScsiOptions = {}): EmbeddedScsiSpec {
  return { kind: "scsi", ...options };
}

/** What describes the one disk. */
const ofOneDisk = ["file", "size", "serial", "readonly", "target", "lun", "backend"] as const;

/** {@inheritDoc DeviceKind} */
export const scsiKind: DeviceKind<ScsiSpec | EmbeddedScsiSpec> = {
  hasFeature: (name) => scsiModelFeatures.includes(ScsiFeature[name as keyof typeof ScsiFeature]),
  refuse(spec, refuse) {
    const { luns, ...options }: EmbeddedScsiSpec = spec;
    const described = ofOneDisk.find((key) => options[key] !== undefined);
    if (luns !== undefined && described !== undefined)
      refuse(`has its units from 'luns': '${described}' does not go with it`);
  },
  async make(spec, { name, queueSize, openImage }) {
    const embedded: EmbeddedScsiSpec = spec;
    const units = embedded.luns ?? [await oneDisk(embedded, openImage)];
    try {
      return new ScsiModel({
        name,
        // Request header and response take two descriptors of the ring.
        segMax: Math.max(1, queueSize - 2),
        queues: embedded.queues ?? 1,
        features: embedded.features ?? {},
        characteristics: embedded,
        units,
        port: embedded.port ?? new ScsiPort(),
        lies: embedded.lies ?? {},
      });
    } catch (error) {
      await Promise.all(units.map(({ backend }) => backend?.close()));
      throw error;
    }
  },
};

async function oneDisk(
  spec: EmbeddedScsiSpec,
  open: Parameters<typeof openMedium>[1],
): Promise<ScsiUnitOptions> {
  const { backend = await openMedium(spec, open), target, lun, serial, readonly } = spec;
  return { backend, target, lun, serial, readonly };
}
