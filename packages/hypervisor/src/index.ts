export {
  balloon,
  type EmbeddedBalloonOptions,
  type EmbeddedBalloonSpec,
} from "./balloon-device.js";
export { blk, type EmbeddedBlkOptions, type EmbeddedBlkSpec } from "./blk-device.js";
export { type BlockBackend, MemoryBackend } from "./block-backend.js";
export {
  consoleDevice,
  type EmbeddedConsoleOptions,
  type EmbeddedConsoleSpec,
} from "./console-device.js";
export { CrashBackend } from "./crash-backend.js";
export { type BackendRequest, type Fate, FaultBackend } from "./fault-backend.js";
export {
  type EmbeddedDevice,
  EmbeddedMachine,
  type EmbeddedOptions,
  embedded,
} from "./machine.js";
export type { OpenImage } from "./medium.js";
export type { BalloonCharacteristics, BalloonLies } from "./models/balloon.js";
export { BalloonPort, type BalloonStatistics } from "./models/balloon-port.js";
export type { BlockLies } from "./models/block.js";
export type { BlockCharacteristics, RangeLimits } from "./models/block-config.js";
export {
  ConsoleHost,
  ConsoleHostPort,
  type ConsoleHostPortOptions,
  type ConsoleSize,
} from "./models/console-host.js";
export type { ConsoleLies } from "./models/console-lies.js";
export type { NetCharacteristics } from "./models/net-config.js";
export type { NetFilterState } from "./models/net-filter.js";
export type { NetLies } from "./models/net-lies.js";
export { type NetCounters, NetPort } from "./models/net-port.js";
export type { ScsiCharacteristics } from "./models/scsi-config.js";
export type { ScsiLies } from "./models/scsi-lies.js";
export { ScsiPort } from "./models/scsi-port.js";
export type { ScsiUnitOptions } from "./models/scsi-unit-options.js";
export type { ZonedCharacteristics } from "./models/zones.js";
export { DEFAULT_MAX_FRAME, type NetBackend, type OpenNet } from "./net-backend.js";
export { GatewayBackend } from "./net-backends/gateway.js";
export { LoopbackBackend } from "./net-backends/loopback.js";
export { PcapBackend, type PcapOptions } from "./net-backends/pcap.js";
export { Wire } from "./net-backends/wire.js";
export { type EmbeddedNetOptions, type EmbeddedNetSpec, net } from "./net-device.js";
export type { CapabilitySpec, PciIdentity } from "./pci/configuration.js";
export type { Distortion } from "./pci/distortion.js";
export { RuleBook, type Violation } from "./rules/rule-book.js";
export { type EmbeddedScsiOptions, type EmbeddedScsiSpec, scsi } from "./scsi-device.js";
