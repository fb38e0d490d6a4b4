// The smallest driver: one queue, and flush requests that a block device answers.
import {
  type Attached,
  DeviceType,
  type Driver,
  type FeatureSet,
  featureSet,
  ReservedFeature,
  type VirtioDevice,
  type Virtqueue,
} from "@virtio/core";

/** A device under the null driver. */
export interface NullDevice extends Attached {
  readonly device: VirtioDevice;
  readonly queue: Virtqueue;
  readonly kind: string;
  readonly features: FeatureSet<ReservedFeature>;
  /** One flush; resolves to its status byte. */
  flush(): Promise<number>;
}

/** Makes it; `during` runs inside attach. */
export function nullDriver(
  during: (device: VirtioDevice) => void | Promise<void> = () => {},
): Driver<NullDevice> {
  return {
    name: "null",
    description: "Null driver",
    types: [DeviceType.BLOCK],
    features: [],
    tunables: [],
    options: {},
    attach: async (device) => {
      const features = await device.negotiate(
        featureSet<ReservedFeature>().with(
          ReservedFeature.RING_RESET,
          ReservedFeature.EVENT_IDX,
          ReservedFeature.RING_PACKED,
          ReservedFeature.SR_IOV,
        ),
      );
      await device.finalizeFeatures();
      const [queue] = await device.allocateQueues([
        { name: "null0 request", maxSegments: 2, interrupt: true },
      ]);
      if (queue === undefined) throw new Error("no queue");
      await during(device);
      const kind = await device.setupInterrupts();
      queue.enableInterrupt();
      const memory = device.memory.allocate(32);
      memory.bytes[0] = 4;
      const attached: NullDevice = {
        device,
        queue,
        kind,
        features,
        flush: () =>
          new Promise((resolve, reject) => {
            memory.bytes[16] = 0xff;
            queue.onBroken = reject;
            queue.onUsed = () => {
              do {
                if (queue.dequeue() >= 0) resolve(memory.bytes[16] ?? -1);
              } while (queue.enableInterrupt());
            };
            queue.enqueue(
              0,
              new Uint32Array([memory.address, 16, memory.address + 16, 1]),
              0,
              1,
              1,
            );
            queue.notify();
          }),
        detach: async () => {
          await device.release();
          memory.free();
        },
        suspend: async () => {},
        resume: async () => {},
        closed: Promise.resolve(null),
      };
      return attached;
    },
  };
}
