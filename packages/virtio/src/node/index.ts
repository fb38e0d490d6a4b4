export { type BootOptions, boot } from "./boot.js";
export { FileHost } from "./file-host.js";
export {
  defaultDevices,
  type MachineOptions,
  type MachineSpec,
  openMachine,
  parseMachineSpec,
} from "./machine.js";
export { importModule } from "./user-modules.js";
