// The words every virtio device shares: virtio 1.4 chapters 2, 5 and 6.

/** Device ids (virtio 1.4 §5). */
export enum DeviceType {
  /** §5.1 */
  NET = 1,
  /** §5.2 */
  BLOCK = 2,
  /** §5.3 */
  CONSOLE = 3,
  /** §5.4 */
  ENTROPY = 4,
  /** §5.5 */
  BALLOON = 5,
  /** §5.6 */
  SCSI = 8,
}

/** FreeBSD's names of device types, as its transports print them (virtio_device_name). */
export const deviceTypeNames: Readonly<Record<number, string>> = {
  1: "Network",
  2: "Block",
  3: "Console",
  4: "Entropy",
  5: "Balloon",
  6: "IOMemory",
  7: "Remote Processor Messaging",
  8: "SCSI",
  9: "9P Transport",
  11: "Remote Processor Serial",
  12: "CAIF",
  16: "GPU",
  18: "Input",
  19: "VSOCK Transport",
  20: "Crypto",
};

/** Bits of the device status field (virtio 1.4 §2.1). Values, not bit numbers. */
export enum DeviceStatus {
  ACKNOWLEDGE = 1,
  DRIVER = 2,
  DRIVER_OK = 4,
  FEATURES_OK = 8,
  SUSPEND = 16,
  DEVICE_NEEDS_RESET = 64,
  FAILED = 128,
}

/** Feature bits of queues and negotiation (virtio 1.4 §6). Bit numbers. */
export enum ReservedFeature {
  /** §6.3, legacy interface only */
  NOTIFY_ON_EMPTY = 24,
  /** §6.3, legacy interface only */
  ANY_LAYOUT = 27,
  /** §2.7.5.3, §2.8.7 */
  INDIRECT_DESC = 28,
  /** §2.7.7, §2.7.10, §2.8.10 */
  EVENT_IDX = 29,
  /** §6 */
  VERSION_1 = 32,
  /** §6 */
  ACCESS_PLATFORM = 33,
  /** §2.8 */
  RING_PACKED = 34,
  /** §2.7.9, §2.8.11 */
  IN_ORDER = 35,
  /** §6 */
  ORDER_PLATFORM = 36,
  /** §6 */
  SR_IOV = 37,
  /** §2.9 */
  NOTIFICATION_DATA = 38,
  /** §4.1.5.2 */
  NOTIF_CONFIG_DATA = 39,
  /** §2.6.1 */
  RING_RESET = 40,
  /** §2.13 */
  ADMIN_VQ = 41,
  /** §3.4 */
  SUSPEND = 43,
}

/** FreeBSD's names of the common feature bits (virtio_common_feature_desc), and the specification's where FreeBSD has none. */
export const reservedFeatureNames: readonly {
  readonly bit: ReservedFeature;
  readonly name: string;
}[] = [
  { bit: ReservedFeature.NOTIFY_ON_EMPTY, name: "NotifyOnEmpty" },
  { bit: ReservedFeature.ANY_LAYOUT, name: "AnyLayout" },
  { bit: ReservedFeature.INDIRECT_DESC, name: "RingIndirectDesc" },
  { bit: ReservedFeature.EVENT_IDX, name: "RingEventIdx" },
  { bit: ReservedFeature.VERSION_1, name: "Version1" },
  { bit: ReservedFeature.ACCESS_PLATFORM, name: "IOMMUPlatform" },
  { bit: ReservedFeature.RING_PACKED, name: "RingPacked" },
  { bit: ReservedFeature.IN_ORDER, name: "InOrder" },
  { bit: ReservedFeature.ORDER_PLATFORM, name: "OrderPlatform" },
  { bit: ReservedFeature.SR_IOV, name: "SRIOV" },
  { bit: ReservedFeature.NOTIFICATION_DATA, name: "NotificationData" },
  { bit: ReservedFeature.NOTIF_CONFIG_DATA, name: "NotifConfigData" },
  { bit: ReservedFeature.RING_RESET, name: "RingReset" },
  { bit: ReservedFeature.SUSPEND, name: "Suspend" },
];
