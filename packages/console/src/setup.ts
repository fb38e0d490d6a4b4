// What driver and device agree on before the device is live (virtio 1.4 §5.3.2, §5.3.4, §5.3.5).
import {
  type ConfigField,
  type FeatureSet,
  type QueueSpec,
  type VirtioDevice,
  VirtioFault,
} from "@virtio/core";
import { ConsoleConfig, ConsoleFeature } from "@virtio/core/console";
import type { Features } from "./features.js";
import type { WindowSize } from "./sizes.js";

/** Most ports of a device, FreeBSD's. */
const PORTS_MAX = 32;

/** What the configuration says, of what was negotiated. */
export interface Settled {
  readonly features: FeatureSet<Features>;
  /** Ports that there can be. */
  readonly maxPorts: number;
  /** Null: without SIZE. */
  readonly size: WindowSize | null;
}

/** Reads the configuration; a number of ports that makes no sense becomes one that does, as in FreeBSD. */
export async function readConfig(
  device: VirtioDevice,
  features: FeatureSet<Features>,
): Promise<Settled> {
  const { cols, rows, maxNrPorts } = ConsoleConfig;
  const fields: Record<string, ConfigField> = {
    ...(features.has(ConsoleFeature.SIZE) ? { cols, rows } : {}),
    ...(features.has(ConsoleFeature.MULTIPORT) ? { maxNrPorts } : {}),
  };
  const none = Object.keys(fields).length === 0;
  const config: Record<string, number> = none ? {} : await device.config.readAll(fields);
  const { cols: columns, rows: lines, maxNrPorts: ports = 1 } = config;
  return {
    features,
    maxPorts: Math.max(1, Math.min(ports, PORTS_MAX)),
    size: columns === undefined || lines === undefined ? null : { cols: columns, rows: lines },
  };
}

/** Queues in the order of §5.3.2, with FreeBSD's names: they count pairs, so that port 1's are those of `port2`. */
export function queueSpecs(name: string, { features, maxPorts }: Settled): readonly QueueSpec[] {
  const pair = (what: string, receive: string, transmit: string): readonly QueueSpec[] =>
    [receive, transmit].map((end) => ({
      name: `${name}-${what} ${end}`,
      maxSegments: 1,
      interrupt: true,
    }));
  const multiport = features.has(ConsoleFeature.MULTIPORT);
  const further = Array.from({ length: maxPorts - 1 }, (_, i) => pair(`port${i + 2}`, "in", "out"));
  return [
    pair("port0", "in", "out"),
    ...(multiport ? [pair("control", "rx", "tx"), ...further] : []),
  ].flat();
}

/** @throws VirtioFault INVALID, and what writing the configuration throws */
export async function writeEmergency(device: VirtioDevice, byte: number): Promise<void> {
  if (!Number.isInteger(byte) || byte < 0 || byte > 0xff)
    throw new VirtioFault("INVALID", `${byte} is no byte`);
  await device.config.write(ConsoleConfig.emergWr[0], 4, byte);
}
