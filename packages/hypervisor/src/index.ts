export { type BlockBackend, MemoryBackend } from "./block-backend.js";
export {
  blk,
  type EmbeddedBlkSpec,
  EmbeddedMachine,
  type EmbeddedOptions,
  embedded,
} from "./machine.js";
export { RuleBook, type Violation } from "./rules/rule-book.js";
