export { kernelModule } from "./module.js";
export type { VtconOptions } from "./options.js";
export type { ConsolePort, WindowSize } from "./port.js";
export { type ConsoleDevice, vtcon } from "./vtcon.js";
