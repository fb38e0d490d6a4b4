export { DeviceChain } from "./device-chain.js";
export {
  SplitDeviceQueue,
  type SplitDeviceQueueOptions,
  type WideAddress,
} from "./split-device-queue.js";
export { type SplitLayout, splitLayout } from "./split-layout.js";
export { SplitQueue, type SplitQueueOptions } from "./split-queue.js";
