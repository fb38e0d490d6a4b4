export { kernelModule } from "./module.js";
export type { VtconOptions } from "./options.js";
export type { ConsolePort } from "./port.js";
export type { PortListener } from "./ports.js";
export type { SizeListener, WindowSize } from "./sizes.js";
export { type ConsoleDevice, vtcon } from "./vtcon.js";
