// vtscsi: the VirtIO SCSI driver (virtio 1.4 §5.6; FreeBSD's virtio_scsi(4)).
// Each vtscsiN is a bus scbusN with targets and units; disks of it are daN and cdN.
import {
  DeviceType,
  type Driver,
  type DriverContext,
  type ScsiBus,
  type VirtioDevice,
} from "@virtio/core";
import { ScsiQueue } from "@virtio/core/scsi";
import type { StrategyDisk } from "@virtio/storage";
import { Adapter } from "./adapter.js";
import { featureNames, wanted } from "./features.js";
import { fitted, readHost, writeSizes } from "./host.js";
import { byTunable, tunables, type VtscsiOptions } from "./options.js";
import { OVERHEAD_SEGMENTS } from "./request-queue.js";

/** What attach returns: a bus whose disks take bios, too. */
export interface VtscsiBus extends ScsiBus {
  readonly disks: readonly StrategyDisk[];
}

/**
 * The SCSI driver: `attach(node, vtscsi())` gives a bus, and its disks are there.
 * @see virtio_scsi(4)
 */
export function vtscsi(options: VtscsiOptions = {}): Driver<VtscsiBus> {
  return {
    name: "vtscsi",
    description: "VirtIO SCSI Adapter",
    types: [DeviceType.SCSI],
    features: featureNames,
    tunables,
    options: byTunable(options),
    attach,
  };
}

/** virtio 1.4 §3.1.1, steps 4 to 7; §5.6.5. */
async function attach(device: VirtioDevice, context: DriverContext): Promise<VtscsiBus> {
  const { name } = context;
  const features = await device.negotiate(wanted);
  await device.finalizeFeatures();
  const host = await readHost(device, name);
  await writeSizes(device.config);
  const most = Math.min(context.tunables.number("max_queues"), context.cpus);
  const count = Math.max(1, Math.min(host.requestQueues, most));
  const queue = (what: string, maxSegments: number) => ({
    name: `${name} ${what}`,
    maxSegments,
    interrupt: true,
    clip: true,
  });
  const queues = await device.allocateQueues([
    queue("control", 1),
    queue("event", 1),
    ...Array.from({ length: count }, (_, i) =>
      queue(count === 1 ? "request" : `request ${i}`, host.dataSegments + OVERHEAD_SEGMENTS),
    ),
  ]);
  const size = Math.min(...queues.slice(ScsiQueue.REQUEST).map((each) => each.size));
  const fit = fitted(host, size, name);
  await device.setupInterrupts();
  // Last, because nobody but the driver gives this memory back.
  return new Adapter({ device, context, features, host: fit, queues });
}
