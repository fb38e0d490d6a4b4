export type { BalloonDevice } from "./balloon-device.js";
export { kernelModule } from "./module.js";
export type { VtballoonOptions } from "./options.js";
export type { BalloonCounters } from "./statistics.js";
export { vtballoon } from "./vtballoon.js";
