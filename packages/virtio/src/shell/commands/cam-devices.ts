// SCSI buses and units as camcontrol(8) names them: da0, 0:1:0, all.
import { type ScsiAddress, type ScsiBus, type ScsiUnit, VirtioFault } from "@virtio/core";
import type { Kernel } from "../../kernel.js";

/** A unit on its bus. */
export interface CamDevice extends ScsiAddress {
  readonly bus: ScsiBus;
  /** `da0`, or where it is: `0:1:0`. */
  readonly name: string;
  /** Undefined: nothing was found there. */
  readonly unit: ScsiUnit | undefined;
}

/** Every bus, in the order of their numbers. */
export function busesOf(kernel: Kernel): readonly ScsiBus[] {
  return [...kernel.published.values()]
    .filter((what) => what.kind === "scsi")
    .sort((a, b) => numberOf(a) - numberOf(b));
}

/** `scbus0` is 0. */
export const numberOf = ({ name }: ScsiBus): number => Number(name.replace(/^scbus/, ""));

/** @throws VirtioFault NOT_FOUND */
export function busOf(kernel: Kernel, number: number): ScsiBus {
  const bus = busesOf(kernel).find((each) => numberOf(each) === number);
  if (bus === undefined) throw new VirtioFault("NOT_FOUND", `there is no scbus${number}`);
  return bus;
}

/** Bus, target and LUN of `0:1:2`; null: it is something else. */
export function parseAddress(text: string): readonly [number, number, number] | null {
  const match = /^(\d+):(\d+):(\d+)$/.exec(text);
  return match === null ? null : [Number(match[1]), Number(match[2]), Number(match[3])];
}

/** The unit of this name. @throws VirtioFault NOT_FOUND */
export function deviceOf(kernel: Kernel, text: string): CamDevice {
  const address = parseAddress(text);
  if (address !== null) {
    const [number, target, lun] = address;
    const bus = busOf(kernel, number);
    const unit = bus.units.find((each) => each.target === target && each.lun === lun);
    return { bus, target, lun, unit, name: unit?.peripheral ?? text };
  }
  const name = text.replace(/^\/dev\//, "");
  for (const bus of busesOf(kernel)) {
    const unit = bus.units.find(({ peripheral }) => peripheral === name);
    if (unit !== undefined) return { bus, target: unit.target, lun: unit.lun, unit, name };
  }
  throw new VirtioFault("NOT_FOUND", `no such device: ${text}`);
}

/** Names for completion. */
export const deviceNames = (kernel: Kernel): readonly string[] =>
  busesOf(kernel).flatMap(({ units }) =>
    units.flatMap(({ peripheral }) => (peripheral === null ? [] : [peripheral])),
  );
