// Where the modern structures lie in their BAR.
import { VirtioFault } from "@virtio/core";

/** Offsets of the structures in their BAR, and lengths. Bytes. */
export interface StructureLayout {
  /** What the BAR decodes. */
  readonly space: "memory" | "io";
  readonly common: number;
  readonly isr: number;
  readonly device: number;
  readonly notify: number;
  /** Of the BAR. */
  readonly length: number;
  /** Of the device configuration, as its capability says. */
  readonly configLength: number;
  /** Between two doorbells. */
  readonly multiplier: number;
}

/** 4 KiB each, as QEMU lays them out. */
const inMemory = { common: 0, isr: 0x1000, device: 0x2000, notify: 0x3000, length: 0x4000 };
/** Close together: a machine has 64 KiB of ports. */
const inPorts = { common: 0, isr: 0x40, device: 0x80, notify: 0x100, length: 0x200 };

/**
 * The layout of a function whose device configuration has `configLength` bytes.
 * @throws VirtioFault INVALID when these do not fit
 */
export function structureLayout(
  space: StructureLayout["space"],
  configLength: number,
  multiplier: number,
): StructureLayout {
  const places = space === "memory" ? inMemory : inPorts;
  const room = places.notify - places.device;
  if (configLength > room)
    throw new VirtioFault("INVALID", `device configuration of ${configLength} bytes, room ${room}`);
  return { ...places, space, configLength, multiplier };
}
