export { kernelModule } from "./module.js";
export type { VtblkOptions } from "./options.js";
export { vtblk } from "./vtblk.js";
