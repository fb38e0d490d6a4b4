// What dd(1) copies from and to: disks and other devices below /dev, and files of the host everywhere else.
import { type Disk, VirtioFault } from "@virtio/core";
import type { Session } from "../command.js";
import type { HostFile } from "../host.js";

/** Where bytes come from. */
export interface Source {
  /** As the user named it. */
  readonly name: string;
  /** Bytes; Infinity when it never ends. */
  readonly size: number;
  /** Positions and lengths are multiples of this. */
  readonly sectorSize: number;
  /** Fills `into`, which ends within `size`. */
  read(position: number, into: Uint8Array, signal: AbortSignal): Promise<void>;
  close(): Promise<void>;
}

/** Where bytes go. */
export interface Sink {
  readonly name: string;
  /** Bytes it can hold; Infinity when nobody knows. */
  readonly capacity: number;
  readonly sectorSize: number;
  write(position: number, from: Uint8Array, signal: AbortSignal): Promise<void>;
  /** As `write` of these zeros, but leaves a hole where that reads the same. */
  zero(position: number, zeros: Uint8Array, signal: AbortSignal): Promise<void>;
  /** Drops what it holds from here on, where it is a file. */
  truncate(size: number): Promise<void>;
  /** Makes a file at least this long: it may end in a hole. */
  extend(size: number): Promise<void>;
  /** Resolves when everything written is on stable storage. */
  flush(signal: AbortSignal): Promise<void>;
  close(): Promise<void>;
}

const nothing = async (): Promise<void> => {};

const isDevice = (path: string): boolean => path.startsWith("/dev/");

/** Opens what `if=` names. @throws VirtioFault NOT_FOUND, INVALID, IO */
export async function openSource(name: string, { kernel, host }: Session): Promise<Source> {
  if (name === "/dev/null") return { name, size: 0, sectorSize: 1, read: nothing, close: nothing };
  if (name === "/dev/zero")
    return {
      name,
      size: Number.POSITIVE_INFINITY,
      sectorSize: 1,
      read: async (_, into) => {
        into.fill(0);
      },
      close: nothing,
    };
  if (isDevice(name)) {
    const disk = kernel.disk(name);
    return {
      name,
      size: disk.mediaSize,
      sectorSize: disk.sectorSize,
      read: (position, into, signal) => disk.read(position, into, { signal }),
      close: nothing,
    };
  }
  const file = await host.open(name);
  return {
    name,
    size: file.size,
    sectorSize: 1,
    read: (position, into) => readWhole(name, file, position, into),
    close: () => file.close(),
  };
}

async function readWhole(
  name: string,
  file: HostFile,
  position: number,
  into: Uint8Array,
): Promise<void> {
  const length = await file.read(position, into);
  if (length < into.length)
    throw new VirtioFault(
      "IO",
      `${name}: it shrank to ${position + length} bytes while it was read`,
    );
}

/** Opens what `of=` names; a file is made when it is not there. @throws VirtioFault NOT_FOUND, READ_ONLY, INVALID, IO */
export async function openSink(name: string, { kernel, host }: Session): Promise<Sink> {
  const capacity = Number.POSITIVE_INFINITY;
  const hollow = { write: nothing, zero: nothing, truncate: nothing, extend: nothing };
  if (name === "/dev/null" || name === "/dev/zero")
    return { name, capacity, sectorSize: 1, ...hollow, flush: nothing, close: nothing };
  return isDevice(name)
    ? diskSink(name, kernel.disk(name))
    : fileSink(name, await host.create(name));
}

function diskSink(name: string, disk: Disk): Sink {
  if (disk.readOnly)
    throw new VirtioFault("READ_ONLY", `${name}: Read-only file system: the disk is read-only`);
  const write: Sink["write"] = (position, from, signal) => disk.write(position, from, { signal });
  return {
    name,
    capacity: disk.mediaSize,
    sectorSize: disk.sectorSize,
    write,
    // FreeBSD's dd seeks over them on a disk too; what the disk held there would stay.
    zero: disk.can.writeZeroes
      ? (position, { length }, signal) => disk.writeZeroes(position, length, { signal })
      : write,
    truncate: nothing,
    extend: nothing,
    flush: (signal) => disk.flush({ signal }),
    close: nothing,
  };
}

function fileSink(name: string, file: HostFile): Sink {
  /** Bytes that it held before the copy: there a hole would show them. */
  let held = file.size;
  let size = file.size;
  const write: Sink["write"] = async (position, from) => {
    await file.write(position, from);
    size = Math.max(size, position + from.length);
  };
  const truncate = async (to: number): Promise<void> => {
    await file.truncate(to);
    size = to;
  };
  return {
    name,
    capacity: Number.POSITIVE_INFINITY,
    sectorSize: 1,
    write,
    zero: (position, zeros, signal) =>
      position < held ? write(position, zeros, signal) : Promise.resolve(),
    truncate: async (to) => {
      await truncate(to);
      held = Math.min(held, to);
    },
    extend: async (to) => {
      if (to > size) await truncate(to);
    },
    flush: () => file.sync(),
    close: () => file.close(),
  };
}
