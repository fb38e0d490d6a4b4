// The words of the SCSI host device: virtio 1.4 §5.6, and those of SCSI itself that both ends speak. Offsets and sizes in bytes.
// virtio's own fields are little-endian (a legacy guest's in its own order); those of SCSI are big-endian.

import type { ConfigField } from "../device.js";

/** Feature bits (virtio 1.4 §5.6.3). Bit numbers. */
export enum ScsiFeature {
  /** a request may have both data-out and data-in */
  INOUT = 0,
  /** the device reports units that come and go */
  HOTPLUG = 1,
  /** the device reports changed parameters of units */
  CHANGE = 2,
  /** protection information */
  T10_PI = 3,
}

/** Queues (virtio 1.4 §5.6.2); the request queues follow. */
export enum ScsiQueue {
  CONTROL = 0,
  EVENT = 1,
  /** the first of `num_queues` */
  REQUEST = 2,
}

/** Names of the fields of `struct virtio_scsi_config`. */
export type ScsiConfigField =
  | "numQueues"
  | "segMax"
  | "maxSectors"
  | "cmdPerLun"
  | "eventInfoSize"
  | "senseSize"
  | "cdbSize"
  | "maxChannel"
  | "maxTarget"
  | "maxLun";

/** Fields of `struct virtio_scsi_config` (virtio 1.4 §5.6.4): offset, width. The driver may write senseSize and cdbSize. */
export const ScsiConfig: Readonly<Record<ScsiConfigField, ConfigField>> = {
  numQueues: [0, 4],
  segMax: [4, 4],
  maxSectors: [8, 4],
  cmdPerLun: [12, 4],
  eventInfoSize: [16, 4],
  senseSize: [20, 4],
  cdbSize: [24, 4],
  maxChannel: [28, 2],
  maxTarget: [30, 2],
  maxLun: [32, 4],
};

/** Bytes of `struct virtio_scsi_config` (virtio 1.4 §5.6.4). */
export const SCSI_CONFIG_SIZE = 36;
/** `sense_size` after a reset (virtio 1.4 §5.6.4.2). */
export const SCSI_SENSE_SIZE = 96;
/** `cdb_size` after a reset (virtio 1.4 §5.6.4.2). */
export const SCSI_CDB_SIZE = 32;

/** Bytes of a `lun` field (virtio 1.4 §5.6.6.1). */
export const SCSI_LUN_SIZE = 8;
/** Largest target that a `lun` field can name (virtio 1.4 §5.6.4). */
export const SCSI_MAX_TARGET = 255;
/** Largest LUN that a `lun` field can name (virtio 1.4 §5.6.4). */
export const SCSI_MAX_LUN = 16383;

/**
 * Bytes of a `lun` field that names a target's unit (virtio 1.4 §5.6.6.1): 1, the target, a single-level LUN structure; the rest is 0.
 * Who writes one sets {@link SCSI_LUN_FLAT} in HIGH, who reads one looks at {@link SCSI_LUN_HIGH_MASK} of it.
 */
export enum ScsiLun {
  /** SCSI_LUN_ADDRESS, or SCSI_LUN_WELL_KNOWN */
  FIRST = 0,
  TARGET = 1,
  HIGH = 2,
  LOW = 3,
}

/** First byte of the address of a target's unit (virtio 1.4 §5.6.6.1). */
export const SCSI_LUN_ADDRESS = 1;
/** In the high byte of a LUN: flat space addressing (SAM-5). */
export const SCSI_LUN_FLAT = 0x40;
/** In the high byte of a LUN: what belongs to the number (SAM-5). */
export const SCSI_LUN_HIGH_MASK = 0x3f;
/** First byte of a well-known logical unit's LUN: the whole field's first, or HIGH (virtio 1.4 §5.6.6.1; SAM-5, extended addressing). */
export const SCSI_LUN_WELL_KNOWN = 0xc1;
/** Second byte of the LUN of REPORT LUNS (virtio 1.4 §5.6.6.1; SPC-4, well known logical units). */
export const SCSI_WLUN_REPORT_LUNS = 1;

/** Fields of the readable part of a request (virtio 1.4 §5.6.6.1): offsets. */
export enum ScsiRequest {
  LUN = 0,
  ID = 8,
  TASK_ATTR = 16,
  PRIO = 17,
  CRN = 18,
  /** `cdb_size` bytes; data-out follows */
  CDB = 19,
}

/** Fields of the writable part of a request (virtio 1.4 §5.6.6.1): offsets. */
export enum ScsiAnswer {
  SENSE_LEN = 0,
  RESIDUAL = 4,
  STATUS_QUALIFIER = 8,
  STATUS = 10,
  RESPONSE = 11,
  /** `sense_size` bytes; data-in follows */
  SENSE = 12,
}

/** Values of `task_attr` (virtio 1.4 §5.6.6.1): `VIRTIO_SCSI_S_SIMPLE` and so on. */
export enum ScsiTaskAttribute {
  SIMPLE = 0,
  ORDERED = 1,
  HEAD = 2,
  ACA = 3,
}

/** Values of `response` to a command (virtio 1.4 §5.6.6.1): `VIRTIO_SCSI_S_OK` and so on. */
export enum ScsiResponse {
  /** completed, `status` is valid */
  OK = 0,
  /** more data than there was room for */
  OVERRUN = 1,
  /** by a task management function */
  ABORTED = 2,
  /** no such target */
  BAD_TARGET = 3,
  /** by a reset of the unit, the target or the bus */
  RESET = 4,
  /** tried again, it may succeed */
  BUSY = 5,
  TRANSPORT_FAILURE = 6,
  /** tried again on another path, it would not succeed */
  TARGET_FAILURE = 7,
  /** tried again on another path, it may succeed */
  NEXUS_FAILURE = 8,
  /** anything else */
  FAILURE = 9,
}

/** Types of control requests (virtio 1.4 §5.6.6.2): `VIRTIO_SCSI_T_TMF` and so on. */
export enum ScsiControl {
  /** task management function */
  TMF = 0,
  /** which asynchronous notifications a unit has */
  AN_QUERY = 1,
  /** which asynchronous notifications the driver wants */
  AN_SUBSCRIBE = 2,
}

/** Values of `subtype` of a task management function (virtio 1.4 §5.6.6.2): `VIRTIO_SCSI_T_TMF_ABORT_TASK` and so on. */
export enum ScsiTmf {
  ABORT_TASK = 0,
  ABORT_TASK_SET = 1,
  CLEAR_ACA = 2,
  CLEAR_TASK_SET = 3,
  I_T_NEXUS_RESET = 4,
  LOGICAL_UNIT_RESET = 5,
  QUERY_TASK = 6,
  QUERY_TASK_SET = 7,
}

/** Fields of the readable part of a task management function (virtio 1.4 §5.6.6.2): offsets. The answer is the response, a byte. */
export enum ScsiTmfRequest {
  TYPE = 0,
  SUBTYPE = 4,
  LUN = 8,
  /** le64: of ABORT_TASK and QUERY_TASK */
  ID = 16,
  SIZE = 24,
}

/** Fields of the readable part of AN_QUERY and AN_SUBSCRIBE (virtio 1.4 §5.6.6.2): offsets. */
export enum ScsiAnRequest {
  TYPE = 0,
  LUN = 4,
  /** ScsiAsyncEvent bits */
  EVENT_REQUESTED = 12,
  SIZE = 16,
}

/** Fields of the writable part of AN_QUERY and AN_SUBSCRIBE (virtio 1.4 §5.6.6.2): offsets. */
export enum ScsiAnAnswer {
  /** ScsiAsyncEvent bits */
  EVENT_ACTUAL = 0,
  RESPONSE = 4,
  SIZE = 5,
}

/** Values of `response` to a control request (virtio 1.4 §5.6.6.2); those to AN requests are the same, 0 named OK. */
export enum ScsiControlResponse {
  FUNCTION_COMPLETE = 0,
  BAD_TARGET = 3,
  BUSY = 5,
  TRANSPORT_FAILURE = 6,
  TARGET_FAILURE = 7,
  NEXUS_FAILURE = 8,
  FAILURE = 9,
  /** of a query: there is such a task */
  FUNCTION_SUCCEEDED = 10,
  /** the device does not know, or does not do, this */
  FUNCTION_REJECTED = 11,
  /** no such unit */
  INCORRECT_LUN = 12,
}

/** Asynchronous notifications (virtio 1.4 §5.6.6.2): `VIRTIO_SCSI_EVT_ASYNC_MEDIA_CHANGE` and so on. Masks. */
export enum ScsiAsyncEvent {
  OPERATIONAL_CHANGE = 2,
  POWER_MGMT = 4,
  EXTERNAL_REQUEST = 8,
  MEDIA_CHANGE = 16,
  MULTI_HOST = 32,
  DEVICE_BUSY = 64,
}

/** Fields of `struct virtio_scsi_event` (virtio 1.4 §5.6.6.3): offsets. */
export enum ScsiEventBuffer {
  EVENT = 0,
  LUN = 4,
  REASON = 12,
  SIZE = 16,
}

/** Values of `event` (virtio 1.4 §5.6.6.3): `VIRTIO_SCSI_T_TRANSPORT_RESET` and so on. */
export enum ScsiEvent {
  NO_EVENT = 0,
  /** `reason` is a ScsiResetReason */
  TRANSPORT_RESET = 1,
  /** `reason` has ScsiAsyncEvent bits */
  ASYNC_NOTIFY = 2,
  /** `reason` has the additional sense code in bits 0 to 7 and its qualifier in bits 8 to 15 */
  PARAM_CHANGE = 3,
}

/** In `event`: events were lost for want of buffers (virtio 1.4 §5.6.6.3). */
export const SCSI_EVENTS_MISSED = 0x8000_0000;

/** Values of `reason` with TRANSPORT_RESET (virtio 1.4 §5.6.6.3): `VIRTIO_SCSI_EVT_RESET_HARD` and so on. */
export enum ScsiResetReason {
  /** a unit was reset by somebody else */
  HARD = 0,
  /** a unit came, or it is to be looked at again */
  RESCAN = 1,
  /** a unit is gone */
  REMOVED = 2,
}

// ── SCSI: status, sense (SAM-5, SPC-4) ───────────────────────────────────────

/** Status of a command (SAM-5, status codes). */
export enum ScsiStatus {
  GOOD = 0x00,
  CHECK_CONDITION = 0x02,
  CONDITION_MET = 0x04,
  BUSY = 0x08,
  RESERVATION_CONFLICT = 0x18,
  TASK_SET_FULL = 0x28,
  ACA_ACTIVE = 0x30,
  TASK_ABORTED = 0x40,
}

/** Response codes of sense data: the first byte without its top bit (SPC-4 §4.5.1). */
export enum ScsiSenseFormat {
  FIXED = 0x70,
  FIXED_DEFERRED = 0x71,
  DESCRIPTOR = 0x72,
  DESCRIPTOR_DEFERRED = 0x73,
}

/** Fields of fixed format sense data (SPC-4 §4.5.3): offsets. */
export enum ScsiSense {
  /** ScsiSenseFormat; bit 7: INFORMATION is valid */
  RESPONSE_CODE = 0,
  /** low 4 bits; ILI 0x20, EOM 0x40, FILEMARK 0x80 */
  KEY = 2,
  /** be32: of a medium error the block */
  INFORMATION = 3,
  /** bytes that follow this one */
  ADDITIONAL_LENGTH = 7,
  ASC = 12,
  ASCQ = 13,
  SIZE = 18,
}

/** Sense keys (SPC-4 §4.5.6). */
export enum ScsiSenseKey {
  NO_SENSE = 0x0,
  RECOVERED_ERROR = 0x1,
  NOT_READY = 0x2,
  MEDIUM_ERROR = 0x3,
  HARDWARE_ERROR = 0x4,
  ILLEGAL_REQUEST = 0x5,
  UNIT_ATTENTION = 0x6,
  DATA_PROTECT = 0x7,
  BLANK_CHECK = 0x8,
  COPY_ABORTED = 0xa,
  ABORTED_COMMAND = 0xb,
  MISCOMPARE = 0xe,
}

/** Additional sense codes (SPC-4 §4.5.6): `ASC << 8 | ASCQ`. */
export enum ScsiAsc {
  NO_ADDITIONAL_SENSE = 0x0000,
  /** initializing command required */
  NOT_READY_START_REQUIRED = 0x0402,
  WRITE_ERROR = 0x0c00,
  UNRECOVERED_READ_ERROR = 0x1100,
  PARAMETER_LIST_LENGTH_ERROR = 0x1a00,
  MISCOMPARE_DURING_VERIFY = 0x1d00,
  INVALID_OPCODE = 0x2000,
  LBA_OUT_OF_RANGE = 0x2100,
  INVALID_FIELD_IN_CDB = 0x2400,
  LUN_NOT_SUPPORTED = 0x2500,
  INVALID_FIELD_IN_PARAMETER_LIST = 0x2600,
  WRITE_PROTECTED = 0x2700,
  /** not ready to ready change, medium may have changed */
  MEDIUM_MAY_HAVE_CHANGED = 0x2800,
  /** power on, reset, or bus device reset */
  POWER_ON_OR_RESET = 0x2900,
  BUS_DEVICE_RESET = 0x2903,
  I_T_NEXUS_LOSS = 0x2907,
  MODE_PARAMETERS_CHANGED = 0x2a01,
  CAPACITY_DATA_CHANGED = 0x2a09,
  COMMANDS_CLEARED_BY_ANOTHER_INITIATOR = 0x2f00,
  SAVING_PARAMETERS_NOT_SUPPORTED = 0x3900,
  MEDIUM_NOT_PRESENT = 0x3a00,
  REPORTED_LUNS_DATA_CHANGED = 0x3f0e,
  INTERNAL_TARGET_FAILURE = 0x4400,
  /** a task attribute that there is not */
  INVALID_MESSAGE = 0x4900,
  /** the medium may not be removed */
  MEDIUM_REMOVAL_PREVENTED = 0x5302,
}

// ── SCSI: commands (SPC-4, SBC-3, MMC-6) ─────────────────────────────────────

/** Operation codes, the first byte of a CDB. Each is a clause of SPC-4 (S), SBC-3 (B) or MMC-6 (M) of that name. */
export enum ScsiOpcode {
  /** S */
  TEST_UNIT_READY = 0x00,
  /** S */
  REQUEST_SENSE = 0x03,
  /** B */
  READ_6 = 0x08,
  /** B */
  WRITE_6 = 0x0a,
  /** S */
  INQUIRY = 0x12,
  /** S */
  MODE_SELECT_6 = 0x15,
  /** S */
  MODE_SENSE_6 = 0x1a,
  /** B */
  START_STOP_UNIT = 0x1b,
  /** S */
  SEND_DIAGNOSTIC = 0x1d,
  /** B, M */
  PREVENT_ALLOW_MEDIUM_REMOVAL = 0x1e,
  /** B */
  READ_CAPACITY_10 = 0x25,
  /** B */
  READ_10 = 0x28,
  /** B */
  WRITE_10 = 0x2a,
  /** B */
  WRITE_AND_VERIFY_10 = 0x2e,
  /** B */
  VERIFY_10 = 0x2f,
  /** B */
  SYNCHRONIZE_CACHE_10 = 0x35,
  /** B */
  WRITE_SAME_10 = 0x41,
  /** B */
  UNMAP = 0x42,
  /** M */
  READ_TOC = 0x43,
  /** M */
  GET_CONFIGURATION = 0x46,
  /** M */
  GET_EVENT_STATUS_NOTIFICATION = 0x4a,
  /** S */
  MODE_SELECT_10 = 0x55,
  /** S */
  MODE_SENSE_10 = 0x5a,
  /** B */
  READ_16 = 0x88,
  /** B */
  WRITE_16 = 0x8a,
  /** B */
  VERIFY_16 = 0x8f,
  /** B */
  SYNCHRONIZE_CACHE_16 = 0x91,
  /** B */
  WRITE_SAME_16 = 0x93,
  /** S, B: see ScsiServiceAction */
  SERVICE_ACTION_IN_16 = 0x9e,
  /** S */
  REPORT_LUNS = 0xa0,
  /** B */
  READ_12 = 0xa8,
  /** B */
  WRITE_12 = 0xaa,
}

/** Service actions of SERVICE_ACTION_IN_16, the low 5 bits of byte 1 (SBC-3). */
export enum ScsiServiceAction {
  READ_CAPACITY_16 = 0x10,
}

/** Peripheral device types, the low 5 bits of the first byte of INQUIRY data (SPC-4, standard INQUIRY data). */
export enum ScsiPeripheral {
  DISK = 0x00,
  CD_ROM = 0x05,
  WELL_KNOWN = 0x1e,
  UNKNOWN = 0x1f,
  /** qualifier: no unit here, nor can there be one; the type is UNKNOWN */
  NOT_THERE = 0x60,
}

/** Bytes of standard INQUIRY data that every device has (SPC-4, standard INQUIRY data). */
export const SCSI_INQUIRY_SIZE = 36;

/** Vital product data pages of INQUIRY (SPC-4 §7.8, SBC-3 §6.6). */
export enum ScsiVpd {
  SUPPORTED_PAGES = 0x00,
  UNIT_SERIAL_NUMBER = 0x80,
  DEVICE_IDENTIFICATION = 0x83,
  BLOCK_LIMITS = 0xb0,
  BLOCK_DEVICE_CHARACTERISTICS = 0xb1,
  LOGICAL_BLOCK_PROVISIONING = 0xb2,
}

/** Mode pages (SPC-4 §7.5, SBC-3 §6.5). */
export enum ScsiModePage {
  READ_WRITE_ERROR_RECOVERY = 0x01,
  CACHING = 0x08,
  CONTROL = 0x0a,
  ALL = 0x3f,
}
