export { type BlockBackend, MemoryBackend } from "./block-backend.js";
export { CrashBackend } from "./crash-backend.js";
export { type BackendRequest, type Fate, FaultBackend } from "./fault-backend.js";
export {
  blk,
  type EmbeddedBlkOptions,
  type EmbeddedBlkSpec,
  type EmbeddedDevice,
  EmbeddedMachine,
  type EmbeddedOptions,
  embedded,
} from "./machine.js";
export type { BlockLies } from "./models/block.js";
export type { BlockCharacteristics, RangeLimits } from "./models/block-config.js";
export type { ZonedCharacteristics } from "./models/zones.js";
export type { CapabilitySpec, PciIdentity } from "./pci/configuration.js";
export type { Distortion } from "./pci/distortion.js";
export { RuleBook, type Violation } from "./rules/rule-book.js";
