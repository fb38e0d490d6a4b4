// The words of virtio over PCI: virtio 1.4 §4.1, and of PCI itself what a driver of one function needs (PCI Local Bus 3.0 §6).

/** Vendor id of virtio devices (virtio 1.4 §4.1.2). */
export const VIRTIO_VENDOR_ID = 0x1af4;
/** A modern device's id is this plus its device type (virtio 1.4 §4.1.2). */
export const MODERN_DEVICE_ID_BASE = 0x1040;
/** Last device id of the virtio range (virtio 1.4 §4.1.2). */
export const DEVICE_ID_LAST = 0x107f;
/** First device id of the virtio range: transitional devices (virtio 1.4 §4.1.2). */
export const TRANSITIONAL_DEVICE_ID_BASE = 0x1000;

/** Registers of a type 0 configuration header (PCI 3.0 §6.1). Offsets. */
export enum PciRegister {
  VENDOR_ID = 0x00,
  DEVICE_ID = 0x02,
  COMMAND = 0x04,
  STATUS = 0x06,
  REVISION_ID = 0x08,
  CLASS_PROG = 0x09,
  HEADER_TYPE = 0x0e,
  BAR0 = 0x10,
  SUBSYSTEM_VENDOR_ID = 0x2c,
  SUBSYSTEM_ID = 0x2e,
  CAPABILITIES = 0x34,
  INTERRUPT_LINE = 0x3c,
  INTERRUPT_PIN = 0x3d,
}

/** Registers that a type 1 header, a PCI-to-PCI bridge's, has besides (PCI-to-PCI Bridge 1.2 §3.2). Offsets. */
export enum PciBridgeRegister {
  PRIMARY_BUS = 0x18,
  SECONDARY_BUS = 0x19,
  SUBORDINATE_BUS = 0x1a,
  IO_BASE = 0x1c,
  IO_LIMIT = 0x1d,
  MEMORY_BASE = 0x20,
  MEMORY_LIMIT = 0x22,
  PREFETCHABLE_BASE = 0x24,
  PREFETCHABLE_LIMIT = 0x26,
  PREFETCHABLE_BASE_UPPER = 0x28,
  PREFETCHABLE_LIMIT_UPPER = 0x2c,
  IO_BASE_UPPER = 0x30,
  IO_LIMIT_UPPER = 0x32,
}

/** Bits of the command register (PCI 3.0 §6.2.2). Values. */
export enum PciCommand {
  IO = 0x1,
  MEMORY = 0x2,
  BUS_MASTER = 0x4,
  INTX_DISABLE = 0x400,
}

/** Bits of the status register (PCI 3.0 §6.2.3). Values. */
export enum PciStatus {
  INTERRUPT = 0x8,
  CAPABILITIES = 0x10,
}

/** Capability ids (PCI 3.0 appendix H). */
export enum PciCapability {
  MSI = 0x05,
  VENDOR = 0x09,
  MSIX = 0x11,
  ADVANCED_FEATURES = 0x13,
}

/** Registers of the advanced features capability (PCI ECN Advanced Capabilities). Offsets from it. */
export enum PciAdvancedFeatures {
  LENGTH = 2,
  CAPABILITIES = 3,
  CONTROL = 4,
  STATUS = 5,
}

/** Bits of its capabilities. Values. */
export enum PciAdvancedFeature {
  TRANSACTIONS_PENDING = 1,
  FUNCTION_LEVEL_RESET = 2,
}

/** Bit of its control register: the function is reset, its configuration space too. */
export const INITIATE_FUNCTION_LEVEL_RESET = 1;

/** Types of virtio structure capabilities (virtio 1.4 §4.1.4). */
export enum VirtioCapability {
  /** §4.1.4.3 */
  COMMON = 1,
  /** §4.1.4.4 */
  NOTIFY = 2,
  /** §4.1.4.5 */
  ISR = 3,
  /** §4.1.4.6 */
  DEVICE = 4,
  /** §4.1.4.9 */
  PCI = 5,
  /** §4.1.4.7 */
  SHARED_MEMORY = 8,
  /** §4.1.4.8 */
  VENDOR = 9,
}

/** Registers of the common configuration structure (virtio 1.4 §4.1.4.3). Offsets. */
export enum CommonConfig {
  DEVICE_FEATURE_SELECT = 0x00,
  DEVICE_FEATURE = 0x04,
  DRIVER_FEATURE_SELECT = 0x08,
  DRIVER_FEATURE = 0x0c,
  CONFIG_MSIX_VECTOR = 0x10,
  NUM_QUEUES = 0x12,
  DEVICE_STATUS = 0x14,
  CONFIG_GENERATION = 0x15,
  QUEUE_SELECT = 0x16,
  QUEUE_SIZE = 0x18,
  QUEUE_MSIX_VECTOR = 0x1a,
  QUEUE_ENABLE = 0x1c,
  QUEUE_NOTIFY_OFF = 0x1e,
  QUEUE_DESC = 0x20,
  QUEUE_DRIVER = 0x28,
  QUEUE_DEVICE = 0x30,
  QUEUE_NOTIF_CONFIG_DATA = 0x38,
  QUEUE_RESET = 0x3a,
}

/** Bytes of the common configuration that every device has (virtio 1.4 §4.1.4.3). */
export const COMMON_CONFIG_SIZE_MIN = 0x38;

/** Bits of the ISR status (virtio 1.4 §4.1.4.5). Values. */
export enum IsrStatus {
  QUEUE = 1,
  CONFIG = 2,
}

/** Vector field: the event is mapped to no vector (virtio 1.4 §4.1.5.1.2). */
export const NO_VECTOR = 0xffff;

/** Bits of the MSI message control word (PCI 3.0 §6.8.1.3). Values. */
export enum MsiControl {
  ENABLE = 0x1,
  /** log2 of the messages the function asks for, shifted by 1. */
  MULTIPLE_CAPABLE = 0xe,
  /** log2 of the messages it was given, shifted by 4. */
  MULTIPLE_ENABLE = 0x70,
  ADDRESS_64 = 0x80,
  VECTOR_MASKING = 0x100,
}

/** Bits of the MSI-X message control word (PCI 3.0 §6.8.2.3). Values. */
export enum MsixControl {
  TABLE_SIZE = 0x7ff,
  FUNCTION_MASK = 0x4000,
  ENABLE = 0x8000,
}

/** Bytes of an MSI-X table entry: address low, address high, data, vector control (PCI 3.0 §6.8.2.6). */
export const MSIX_ENTRY_SIZE = 16;

/** Registers of the legacy interface, in BAR 0 (virtio 1.4 §4.1.4.10). Offsets. */
export enum LegacyRegister {
  DEVICE_FEATURES = 0x00,
  DRIVER_FEATURES = 0x04,
  /** Guest-physical address of the queue, divided by {@link LEGACY_PAGE_SIZE}. */
  QUEUE_ADDRESS = 0x08,
  QUEUE_SIZE = 0x0c,
  QUEUE_SELECT = 0x0e,
  QUEUE_NOTIFY = 0x10,
  DEVICE_STATUS = 0x12,
  ISR_STATUS = 0x13,
  /** While MSI-X is enabled. */
  CONFIG_MSIX_VECTOR = 0x14,
  /** While MSI-X is enabled. */
  QUEUE_MSIX_VECTOR = 0x16,
}

/** Unit of the legacy queue address, and alignment of a legacy queue (virtio 1.4 §4.1.5.1.3.1). Bytes. */
export const LEGACY_PAGE_SIZE = 4096;

/** Where the device configuration begins on the legacy interface: without and with MSI-X enabled (virtio 1.4 §4.1.4.10). */
export enum LegacyDeviceConfig {
  WITHOUT_MSIX = 20,
  WITH_MSIX = 24,
}
