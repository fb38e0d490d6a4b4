export { type BlockBackend, MemoryBackend } from "./block-backend.js";
export {
  blk,
  type EmbeddedBlkSpec,
  type EmbeddedDevice,
  EmbeddedMachine,
  type EmbeddedOptions,
  embedded,
} from "./machine.js";
export type { CapabilitySpec, PciIdentity } from "./pci/configuration.js";
export type { Distortion } from "./pci/distortion.js";
export { RuleBook, type Violation } from "./rules/rule-book.js";
