export { attach } from "./attach.js";
export { kernelModule } from "./module.js";
export { type PciNode, type ProbeOptions, probe, type SharedMemory } from "./node.js";
