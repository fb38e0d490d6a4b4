// A kind of device that the embedded machine can have.
import type { CommonSpec } from "@virtio/core";
import type { DeviceModel } from "./device-model.js";
import type { OpenImage } from "./medium.js";
import type { OpenNet } from "./net-backend.js";

/** What a model is made from besides its specification. */
interface Making {
  /** `blk0`, for messages. */
  readonly name: string;
  /** Devices of this kind that the machine had before it. */
  readonly ordinal: number;
  /** Descriptors of each queue. */
  readonly queueSize: number;
  /** Opens an image file; undefined where there are none. */
  readonly openImage: OpenImage | undefined;
  /** Opens a wire that is not of this machine; undefined where there is none. */
  readonly openNet: OpenNet | undefined;
}

/** How a specification of one kind becomes a device. `S` is its specification. */
export interface DeviceKind<S extends CommonSpec = CommonSpec> {
  /** Whether there is a feature of this name that the device can offer and hold back. */
  hasFeature(name: string): boolean;
  /** Says what of a specification the device cannot honour, of what is this kind's own. */
  refuse(spec: S, refuse: (what: string) => never): void;
  /** @throws VirtioFault INVALID, UNSUPPORTED, and what the openers throw */
  make(spec: S, making: Making): Promise<DeviceModel>;
}
