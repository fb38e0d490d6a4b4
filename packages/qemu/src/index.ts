export { blk } from "./blk.js";
export type { QemuDevice, QemuMachine } from "./machine.js";
export { net, type QemuNetdev, type QemuNetOptions, type QemuNetSpec } from "./net.js";
export type { InterruptMode } from "./pci-interrupts.js";
export type { QemuDeviceSpec } from "./plan.js";
export { type QemuOptions, qemu } from "./qemu.js";
export { QmpClient, type QmpEvent, type QmpOptions } from "./qmp.js";
export { type AddressSpace, QtestClient, type QtestOptions, type Width } from "./qtest.js";
