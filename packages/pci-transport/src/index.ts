export { attach } from "./attach.js";
export { kernelModule } from "./module.js";
export { type PciNode, probe } from "./node.js";
