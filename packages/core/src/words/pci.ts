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
}

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

/** Bits of the MSI-X message control word (PCI 3.0 §6.8.2.3). Values. */
export enum MsixControl {
  TABLE_SIZE = 0x7ff,
  FUNCTION_MASK = 0x4000,
  ENABLE = 0x8000,
}

/** Bytes of an MSI-X table entry: address low, address high, data, vector control (PCI 3.0 §6.8.2.6). */
export const MSIX_ENTRY_SIZE = 16;
