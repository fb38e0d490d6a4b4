// Device specifications: the one language in which people say which devices a machine has.
//     blk,file=disk.img,serial=ABC123
//     net,backend=gateway,mac=52:54:00:12:34:56
//     console,ports=2
import { VirtioFault } from "./errors.js";
import { BalloonFeature } from "./words/balloon.js";
import { BlockFeature } from "./words/block.js";
import { ConsoleFeature } from "./words/console.js";
import type { ReservedFeature } from "./words/device.js";
import { NetFeature } from "./words/net.js";
import { ScsiFeature } from "./words/scsi.js";

/** Keys that every device takes. */
export interface CommonSpec {
  /** Which PCI interfaces the device has. Default off. */
  readonly legacy?: "off" | "on" | "transitional" | undefined;
  /** Offer RING_PACKED. */
  readonly packed?: boolean | undefined;
  /** Offer INDIRECT_DESC. */
  readonly indirect?: boolean | undefined;
  /** Offer EVENT_IDX. */
  readonly eventIdx?: boolean | undefined;
  /** Descriptors of each queue. */
  readonly queueSize?: number | undefined;
  /** MSI-X vectors. */
  readonly vectors?: number | undefined;
  /**
   * Features to offer or to hold back, by the specification's name: those of the device type, and ACCESS_PLATFORM, IN_ORDER,
   * NOTIFICATION_DATA, NOTIF_CONFIG_DATA, ORDER_PLATFORM, RING_RESET, SUSPEND; of the legacy interface ANY_LAYOUT and
   * NOTIFY_ON_EMPTY.
   */
  readonly features?: Readonly<Record<string, boolean>> | undefined;
}

/** What a disk keeps its bytes in. */
export interface MediumOptions {
  /** Image file. Without one the device has `size` bytes of memory. */
  readonly file?: string | undefined;
  /** Bytes, a multiple of 512; default 64 MiB. Not with `file`. */
  readonly size?: number | undefined;
  /** Default raw. */
  readonly format?: "raw" | "qcow2" | undefined;
  readonly readonly?: boolean | undefined;
}

/** A block device: `blk`. */
export interface BlkOptions extends CommonSpec, MediumOptions {
  /** At most 20 bytes. */
  readonly serial?: string | undefined;
  /** Request queues; default 1. */
  readonly queues?: number | undefined;
}

/** A block device of a machine. */
export interface BlkSpec extends BlkOptions {
  readonly kind: "blk";
}

/**
 * What a network device is wired to:
 *
 * - `gateway` a network of its own, 10.0.2.0/24, with a gateway and DHCP server 10.0.2.2
 * - `loop` itself: each frame comes back
 * - `pcap:FILE` the frames of a capture file
 * - `stream:SOCKET` a UNIX socket on which frames go as QEMU has them: a length of 4 bytes, big-endian, then the frame
 * - `tap:IF` an interface of this computer
 */
export type NetBackendName =
  | "gateway"
  | "loop"
  | `pcap:${string}`
  | `stream:${string}`
  | `tap:${string}`;

/** A network device: `net`. */
export interface NetOptions extends CommonSpec {
  /** `52:54:00:12:34:56`, no group address. Default: the machine gives each device its own. */
  readonly mac?: string | undefined;
  /** Default gateway. */
  readonly backend?: NetBackendName | undefined;
  /** Pairs of queues; default 1. */
  readonly queues?: number | undefined;
  /** Bytes of payload that the device advises (feature MTU), 68 to 65535. Default: it advises nothing. */
  readonly mtu?: number | undefined;
}

/** A network device of a machine. */
export interface NetSpec extends NetOptions {
  readonly kind: "net";
}

/** A SCSI host with one disk: `scsi`. */
export interface ScsiOptions extends CommonSpec, MediumOptions {
  /** Serial number of the disk, at most 20 bytes. */
  readonly serial?: string | undefined;
  /** Request queues; default 1. */
  readonly queues?: number | undefined;
  /** The disk's target, 0 to 255; default 0. */
  readonly target?: number | undefined;
  /** The disk's logical unit, 0 to 16383; default 0. */
  readonly lun?: number | undefined;
}

/** A SCSI host of a machine. */
export interface ScsiSpec extends ScsiOptions {
  readonly kind: "scsi";
}

/** A memory balloon: `balloon`. */
export interface BalloonOptions extends CommonSpec {}

/** A memory balloon of a machine. */
export interface BalloonSpec extends BalloonOptions {
  readonly kind: "balloon";
}

/**
 * What is at the other end of a console's ports:
 *
 * - `loop` the port itself: each byte comes back
 * - `host` the owner of the machine
 */
export type ConsoleBackendName = "loop" | "host";

/** A console: `console`. */
export interface ConsoleOptions extends CommonSpec {
  /** Ports, 1 to 31; default 1. Several come with control queues (feature MULTIPORT). */
  readonly ports?: number | undefined;
  /** Default loop. */
  readonly backend?: ConsoleBackendName | undefined;
}

/** A console of a machine. */
export interface ConsoleSpec extends ConsoleOptions {
  readonly kind: "console";
}

/** A device of a machine. */
export type DeviceSpec = BlkSpec | NetSpec | ScsiSpec | BalloonSpec | ConsoleSpec;

/** Bytes of a memory disk that nobody sized. */
export const DEFAULT_BLK_SIZE: number = 64 << 20;

type Parse = (value: string) => unknown;

const fail = (what: string): never => {
  throw new VirtioFault("INVALID", what);
};
const text: Parse = (value) => (value === "" ? fail("is empty") : value);
const oneOf =
  (...words: readonly string[]): Parse =>
  (value) =>
    words.includes(value) ? value : fail(`is not one of ${words.join(", ")}`);
const onOff: Parse = (value) => oneOf("on", "off")(value) === "on";
const count =
  (min: number, max: number): Parse =>
  (value) => {
    const n = /^\d+$/.test(value) ? Number(value) : Number.NaN;
    return n >= min && n <= max ? n : fail(`is not a whole number from ${min} to ${max}`);
  };

/** A size as dd(1) takes it: a whole number, then k, m, g or t (powers of 1024) or b (512). @throws VirtioFault INVALID */
export function parseSize(value: string): number {
  const match = /^(\d+)([bkmgt]?)$/i.exec(value);
  const unit =
    { b: 512, k: 2 ** 10, m: 2 ** 20, g: 2 ** 30, t: 2 ** 40, "": 1 }[
      match?.[2]?.toLowerCase() ?? ""
    ] ?? 1;
  const n = match === null ? Number.NaN : Number(match[1]) * unit;
  return Number.isSafeInteger(n) ? n : fail(`'${value}' is not a size such as 512, 64k or 1m`);
}

const mediaSize: Parse = (value) => {
  const n = parseSize(value);
  return n > 0 && n % 512 === 0 ? n : fail("is not a positive multiple of 512");
};
const serial: Parse = (value) =>
  /^[\x21-\x7e]{1,20}$/.test(value) ? value : fail("is not 1 to 20 printable ASCII characters");
const mac: Parse = (value) =>
  /^[\da-f][\da-f](:[\da-f][\da-f]){5}$/i.test(value) && (Number.parseInt(value, 16) & 1) === 0
    ? value.toLowerCase()
    : fail("is not the MAC address of one station, such as 52:54:00:12:34:56");
const netBackend: Parse = (value) =>
  /^(gateway|loop|(pcap|stream):.+|tap:[^\s/]{1,15})$/s.test(value)
    ? value
    : fail("is not one of gateway, loop, pcap:FILE, stream:SOCKET, tap:IF");

/** Keys of the language: the option each sets, and how its value reads. */
type Keys = Readonly<Record<string, readonly [option: string, parse: Parse]>>;

const commonKeys: Keys = {
  legacy: ["legacy", oneOf("off", "on", "transitional")],
  packed: ["packed", onOff],
  indirect: ["indirect", onOff],
  event_idx: ["eventIdx", onOff],
  "queue-size": ["queueSize", count(1, 32768)],
  vectors: ["vectors", count(0, 2048)],
};

/** Features of queues and negotiation that have no key of their own. */
const queueFeatures: readonly string[] = [
  "ACCESS_PLATFORM",
  "ANY_LAYOUT",
  "IN_ORDER",
  "NOTIFICATION_DATA",
  "NOTIFY_ON_EMPTY",
  "NOTIF_CONFIG_DATA",
  "ORDER_PLATFORM",
  "RING_RESET",
  "SUSPEND",
] satisfies (keyof typeof ReservedFeature)[];

/** Keys of what has a medium. */
const mediumKeys: Keys = {
  file: ["file", text],
  size: ["size", mediaSize],
  format: ["format", oneOf("raw", "qcow2")],
  serial: ["serial", serial],
  readonly: ["readonly", onOff],
  queues: ["queues", count(1, 64)],
};

const namesOf = (features: object): readonly string[] =>
  Object.keys(features).filter((name) => !/^\d+$/.test(name));

const kinds: Readonly<
  Record<DeviceSpec["kind"], { readonly keys: Keys; readonly features: readonly string[] }>
> = {
  blk: { keys: mediumKeys, features: namesOf(BlockFeature) },
  net: {
    keys: {
      mac: ["mac", mac],
      backend: ["backend", netBackend],
      queues: ["queues", count(1, 256)],
      mtu: ["mtu", count(68, 65535)],
    },
    features: namesOf(NetFeature),
  },
  scsi: {
    keys: { ...mediumKeys, target: ["target", count(0, 255)], lun: ["lun", count(0, 16383)] },
    features: namesOf(ScsiFeature),
  },
  balloon: { keys: {}, features: namesOf(BalloonFeature) },
  console: {
    keys: { ports: ["ports", count(1, 31)], backend: ["backend", oneOf("loop", "host")] },
    features: namesOf(ConsoleFeature),
  },
};

/** Every kind of device. Each is a specification too: of a device that is all default. A machine that is told nothing has one of each. */
export const deviceKinds: readonly DeviceSpec["kind"][] = Object.keys(
  kinds,
) as DeviceSpec["kind"][];

/**
 * Reads one specification: a kind, then keys. A feature of the device is a key too, by its lower-case name: `discard=off`.
 * @throws VirtioFault INVALID, naming what is wrong and what would be right
 */
export function parseDeviceSpec(spec: string): DeviceSpec {
  const refuse = (what: string): never => fail(`device '${spec}': ${what}`);
  const [kind = "", ...pairs] = spec.split(",");
  const table = Object.hasOwn(kinds, kind)
    ? kinds[kind as DeviceSpec["kind"]]
    : refuse(`no such kind '${kind}' (there is: ${Object.keys(kinds).join(", ")})`);
  const keys: Keys = { ...table.keys, ...commonKeys };
  const options: Record<string, unknown> = {};
  const features: Record<string, boolean> = {};
  for (const pair of pairs) {
    const [key = "", ...rest] = pair.split("=");
    const value = rest.join("=");
    if (rest.length === 0) refuse(`'${pair}' is not of the form key=value`);
    const feature = [...table.features, ...queueFeatures].find(
      (name) => name.toLowerCase() === key,
    );
    const row = Object.hasOwn(keys, key) ? keys[key] : undefined;
    if (row === undefined && feature === undefined)
      refuse(
        `unknown key '${key}' (${kind} takes: ${Object.keys(keys).join(", ")}, or a feature such as ${table.features.at(-1)?.toLowerCase()}=off)`,
      );
    try {
      if (row !== undefined) {
        if (Object.hasOwn(options, row[0])) refuse(`'${key}' is given twice`);
        options[row[0]] = row[1](value);
      } else if (feature !== undefined) features[feature] = onOff(value) === true;
    } catch (error) {
      if (error instanceof VirtioFault && !error.message.startsWith("device "))
        refuse(`${key}=${value}: ${error.message}`);
      throw error;
    }
  }
  if (options["file"] !== undefined && options["size"] !== undefined)
    refuse("'size' does not go with 'file'");
  // Its own table read each key: they are this kind's.
  return {
    kind,
    ...options,
    ...(Object.keys(features).length > 0 ? { features } : {}),
  } as DeviceSpec;
}
