export { createMemfd, SharedMemory } from "./shared-memory.js";
