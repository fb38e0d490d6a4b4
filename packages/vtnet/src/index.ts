export { kernelModule } from "./module.js";
export type { VtnetOptions } from "./options.js";
export { type Vtnet, vtnet } from "./vtnet.js";
