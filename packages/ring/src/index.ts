export { DeviceChain, type SavedChain } from "./device-chain.js";
export type { DeviceQueue, DeviceQueueOptions } from "./device-queue.js";
export { PackedDeviceQueue, type PackedDeviceQueueState } from "./packed-device-queue.js";
export { PackedQueue, type PackedQueueState } from "./packed-queue.js";
export type { QueueAddresses, QueueOptions, WideAddress } from "./queue-options.js";
export { SplitDeviceQueue, type SplitDeviceQueueState } from "./split-device-queue.js";
export { type SplitLayout, splitLayout } from "./split-layout.js";
export { SplitQueue, type SplitQueueState } from "./split-queue.js";
