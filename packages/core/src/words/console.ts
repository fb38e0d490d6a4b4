// The words of the console device: virtio 1.4 §5.3. Offsets and sizes in bytes.

import type { ConfigField } from "../device.js";

/** Feature bits (virtio 1.4 §5.3.3). Bit numbers. */
export enum ConsoleFeature {
  /** `cols` and `rows` are valid */
  SIZE = 0,
  /** several ports, and control queues; `maxNrPorts` is valid */
  MULTIPORT = 1,
  /** `emergWr` takes single bytes at any time */
  EMERG_WRITE = 2,
}

/** The name of a configuration field. */
export type ConsoleConfigField = "cols" | "rows" | "maxNrPorts" | "emergWr";

/** Fields of struct virtio_console_config (virtio 1.4 §5.3.4). */
export const ConsoleConfig: Readonly<Record<ConsoleConfigField, ConfigField>> = {
  /** characters */
  cols: [0, 2],
  /** characters */
  rows: [2, 2],
  /** ports, those that may come included */
  maxNrPorts: [4, 4],
  /** a byte to put out, at any time; only ever written (§5.3.5) */
  emergWr: [8, 4],
};

/** Bytes of struct virtio_console_config. */
export const CONSOLE_CONFIG_SIZE = 12;

/** Events of control messages (virtio 1.4 §5.3.6.2). */
export enum ConsoleEvent {
  /** from the driver: it takes control messages (value 1), or cannot (0) */
  DEVICE_READY = 0,
  /** from the device: there is a port of this id */
  DEVICE_ADD = 1,
  /** from the device: the port is gone */
  DEVICE_REMOVE = 2,
  /** from the driver: the port was taken (value 1), or could not be (0) */
  PORT_READY = 3,
  /** from the device: the port is a console */
  CONSOLE_PORT = 4,
  /** from the device: columns and rows follow, 16 bits each */
  RESIZE = 5,
  /** both ways: the port was opened (value 1), or closed (0) */
  PORT_OPEN = 6,
  /** from the device: the port's name follows, UTF-8 without a NUL */
  PORT_NAME = 7,
}

/** Where the fields of struct virtio_console_control are (virtio 1.4 §5.3.6.2). */
export enum ConsoleControl {
  ID = 0,
  EVENT = 4,
  VALUE = 6,
}

/** Bytes of struct virtio_console_control. */
export const CONSOLE_CONTROL_SIZE = 8;

/** Bytes of struct virtio_console_resize: columns, then rows. */
export const CONSOLE_RESIZE_SIZE = 4;

/** Queues that only a device with MULTIPORT has (virtio 1.4 §5.3.2). */
export enum ConsoleQueue {
  CONTROL_RECEIVE = 2,
  CONTROL_TRANSMIT = 3,
}

/** Index of a port's receive queue; its transmit queue is the next (virtio 1.4 §5.3.2). */
export const consoleReceiveQueue = (port: number): number => (port === 0 ? 0 : 2 * port + 2);
