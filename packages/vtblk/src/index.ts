export { kernelModule } from "./module.js";
export { type VtblkOptions, vtblk } from "./vtblk.js";
