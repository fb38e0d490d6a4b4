// What dd(1) copies from and to: disks and other devices below /dev, and files of the host everywhere else.
import { VirtioFault } from "@virtio/core";
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
  /** Drops what it holds from here on, where it is a file. */
  truncate(size: number): Promise<void>;
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
  if (name === "/dev/null" || name === "/dev/zero")
    return { name, capacity, sectorSize: 1, write: nothing, truncate: nothing, close: nothing };
  if (isDevice(name)) {
    const disk = kernel.disk(name);
    if (disk.readOnly)
      throw new VirtioFault("READ_ONLY", `${name}: Read-only file system: the disk is read-only`);
    return {
      name,
      capacity: disk.mediaSize,
      sectorSize: disk.sectorSize,
      write: (position, from, signal) => disk.write(position, from, { signal }),
      truncate: nothing,
      close: nothing,
    };
  }
  const file = await host.create(name);
  return {
    name,
    capacity,
    sectorSize: 1,
    write: (position, from) => file.write(position, from),
    truncate: (size) => file.truncate(size),
    close: () => file.close(),
  };
}
