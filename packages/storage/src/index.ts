export { type Bio, BioCommand } from "./bio.js";
export { type DiskProvider, StrategyDisk } from "./strategy-disk.js";
