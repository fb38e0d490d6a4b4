// The three calls of the C library that Node does not offer. Loaded on first use: importing the package never throws.
import { createRequire } from "node:module";
import { getSystemErrorName } from "node:util";
import { type FaultCode, VirtioFault } from "@virtio/core";
import type * as Koffi from "koffi";

const MFD_CLOEXEC = 1;
const PROT_READ_WRITE = 3;
const MAP_SHARED = 1;
const MAP_FAILED = 0xffff_ffff_ffff_ffffn;

/** memfd_create(2), mmap(2), munmap(2), with errors as faults. */
export interface Libc {
  /** A new anonymous file, closed on exec. @throws VirtioFault IO */
  memfdCreate(name: string): number;
  /** Maps the file's first `length` bytes, shared. @throws VirtioFault OUT_OF_MEMORY, IO */
  map(fd: number, length: number): { readonly pointer: bigint; readonly buffer: ArrayBuffer };
  /** @throws VirtioFault IO */
  unmap(pointer: bigint, length: number): void;
}

let loaded: Libc | undefined;

/** @throws VirtioFault UNSUPPORTED where there is no memfd or koffi does not load */
export function libc(): Libc {
  loaded ??= load();
  return loaded;
}

function load(): Libc {
  if (process.platform !== "linux")
    throw new VirtioFault(
      "UNSUPPORTED",
      `shared memory needs Linux (memfd_create); this is ${process.platform}`,
    );
  try {
    return bind(createRequire(import.meta.url)("koffi") as typeof Koffi);
  } catch (cause) {
    throw new VirtioFault(
      "UNSUPPORTED",
      `shared memory needs koffi, which does not load on ${process.platform}-${process.arch}: ${String(cause).split("\n")[0]}`,
      { cause },
    );
  }
}

function bind(koffi: typeof Koffi): Libc {
  const symbols = koffi.load(null);
  // koffi has no types for the functions it makes: these three lines give them theirs.
  const memfdCreate = symbols.func("int memfd_create(const char *name, unsigned int flags)") as (
    name: string,
    flags: number,
  ) => number;
  const mmap = symbols.func(
    "void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)",
  ) as (
    address: null,
    length: number,
    protection: number,
    flags: number,
    fd: number,
    offset: number,
  ) => bigint;
  const munmap = symbols.func("int munmap(void *address, size_t length)") as (
    address: bigint,
    length: number,
  ) => number;
  const fail = (code: FaultCode, what: string): never => {
    throw new VirtioFault(code, `${what}: ${getSystemErrorName(-koffi.errno())}`);
  };
  return {
    memfdCreate(name) {
      const fd = memfdCreate(name, MFD_CLOEXEC);
      return fd < 0 ? fail("IO", `memfd_create '${name}'`) : fd;
    },
    map(fd, length) {
      const pointer = mmap(null, length, PROT_READ_WRITE, MAP_SHARED, fd, 0);
      if (pointer === MAP_FAILED)
        fail(
          koffi.errno() === koffi.os.errno["ENOMEM"] ? "OUT_OF_MEMORY" : "IO",
          `mmap of ${length} bytes`,
        );
      return { pointer, buffer: koffi.view(pointer, length) };
    },
    unmap(pointer, length) {
      if (munmap(pointer, length) < 0) fail("IO", `munmap of ${length} bytes`);
    },
  };
}
