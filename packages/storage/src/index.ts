export { type Bio, BioCommand } from "./bio.js";
export { BouncePages } from "./bounce-pages.js";
export type { DiskEvents, DiskProvider, RangeLimits, ZoneProvider } from "./provider.js";
export { Slots } from "./slots.js";
export { StrategyDisk } from "./strategy-disk.js";
