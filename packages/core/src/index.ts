export type { Attached } from "./attached.js";
export { type ByteLine, ByteStreams } from "./byte-streams.js";
export { attachContext } from "./context.js";
export type { ConfigField, ConfigSpace, InterruptKind, QueueSpec, VirtioDevice } from "./device.js";
export {
  type BalloonOptions,
  type BalloonSpec,
  type BlkOptions,
  type BlkSpec,
  type CommonSpec,
  type ConsoleBackendName,
  type ConsoleOptions,
  type ConsoleSpec,
  DEFAULT_BLK_SIZE,
  type DeviceSpec,
  type MediumOptions,
  type NetBackendName,
  type NetOptions,
  type NetSpec,
  parseDeviceSpec,
  parseSize,
  type ScsiOptions,
  type ScsiSpec,
} from "./device-spec.js";
export type { Disk, DiskStatistics, TransferOptions, WriteZeroesOptions } from "./disk.js";
export type {
  AttachContext,
  BusDriver,
  Driver,
  DriverContext,
  KernelModule,
  Log,
  Published,
  VirtioNode,
} from "./driver.js";
export {
  Errno,
  type ErrnoName,
  type FaultCode,
  type FaultDetails,
  VirtioFault,
} from "./errors.js";
export {
  describeFeatures,
  type EnumMember,
  type EnumMembers,
  type FeatureName,
  type FeatureSet,
  featureSet,
  featureSetFromWords,
} from "./features.js";
export type {
  FreeMemory,
  FreeMemoryWatcher,
  FreeRangeRequest,
  MemoryRange,
} from "./free-memory.js";
export { InterruptLine, type LineService } from "./interrupt-line.js";
export type { InterruptCounter, Machine } from "./machine.js";
export {
  type DmaMemory,
  type DmaRegion,
  DmaWindow,
  type DmaWindowOptions,
  type GuestMemory,
  type GuestMemoryRegion,
  GuestRegions,
} from "./memory.js";
export {
  type CapturedFrame,
  type Coalescing,
  type Frame,
  InterfaceCapability,
  type InterfaceStatistics,
  type NetworkInterface,
} from "./network.js";
export type {
  AddressRange,
  IoRegion,
  PciAddress,
  PciBus,
  PciFunction,
  PciInterrupts,
} from "./pci.js";
export type {
  ScsiAddress,
  ScsiAttribute,
  ScsiBus,
  ScsiBusEvent,
  ScsiCommand,
  ScsiFunction,
  ScsiResult,
  ScsiSenseData,
  ScsiTask,
  ScsiUnit,
} from "./scsi-bus.js";
export type { Endpoint, Port } from "./streams.js";
export { type SysctlLeaf, type SysctlNode, SysctlTree } from "./sysctl.js";
export type { Callout, TaskQueue } from "./tasks.js";
export {
  resolveTunables,
  type TunableSources,
  type TunableSpec,
  type Tunables,
} from "./tunables.js";
export type { ChainTemplate, QueueCounters, Virtqueue } from "./virtqueue.js";
export {
  DeviceStatus,
  DeviceType,
  deviceTypeNames,
  ReservedFeature,
  reservedFeatureNames,
} from "./words/device.js";
export type { Zone, ZoneCondition, ZonedDisk, ZoneModel, ZoneType } from "./zones.js";
