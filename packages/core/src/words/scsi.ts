// The words of the SCSI host device (virtio 1.4 §5.6).

/** Feature bits (§5.6.3). */
export enum ScsiFeature {
  INOUT = 0,
  HOTPLUG = 1,
  CHANGE = 2,
  T10_PI = 3,
}
