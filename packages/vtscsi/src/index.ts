export { kernelModule } from "./module.js";
export type { VtscsiOptions } from "./options.js";
export { type VtscsiBus, vtscsi } from "./vtscsi.js";
