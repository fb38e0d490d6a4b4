// A PCI bus of the embedded machine whose functions lie: configuration bytes and register reads as a test wants them.
import type { IoRegion, Machine, PciBus, PciFunction, VirtioFault } from "@virtio/core";

/** Where the embedded machine's functions have their virtio structures. */
const STRUCTURES_BAR = 4;

/** What a function lies about. */
export interface Lies {
  /** Bytes of configuration space by offset, over what the function has. */
  readonly bytes?: ReadonlyMap<number, number>;
  /** A register read of the virtio structures, by offset: what it gives instead, or undefined for the truth. */
  readonly read?: (offset: number, value: number) => number | undefined;
  /** Sees each write to them; false: it does not arrive. */
  readonly write?: (offset: number, value: number) => boolean;
  readonly gone?: Promise<VirtioFault>;
  /** The BAR that `read` and `write` are about; default that of the virtio structures. */
  readonly bar?: number;
}

/** The machine's PCI bus. */
export function pciBus(machine: Machine): PciBus {
  const [bus] = machine.buses;
  if (bus?.kind !== "pci") throw new Error("no PCI bus");
  return bus.bus;
}

/** The bus with its first function lying. */
export function tampered(machine: Machine, lies: Lies): PciBus {
  const real = pciBus(machine);
  return {
    memory: real.memory,
    tasks: real.tasks,
    poll: () => real.poll(),
    windows: real.windows,
    onChange: null,
    functions: async () => {
      const [first, ...rest] = await real.functions();
      return first === undefined ? [] : [liar(first, lies), ...rest];
    },
  };
}

function liar(fn: PciFunction, lies: Lies): PciFunction {
  return {
    address: fn.address,
    interrupts: fn.interrupts,
    gone: lies.gone ?? fn.gone,
    write: (offset, width, value) => fn.write(offset, width, value),
    read: async (offset, width) => {
      const real = await fn.read(offset, width);
      let value = 0;
      for (let i = width - 1; i >= 0; i--)
        value = value * 256 + (lies.bytes?.get(offset + i) ?? Math.floor(real / 256 ** i) % 256);
      return value;
    },
    mapBar: async (index) => {
      const io = await fn.mapBar(index);
      return index === (lies.bar ?? STRUCTURES_BAR) ? lyingRegion(io, lies) : io;
    },
  };
}

function lyingRegion(io: IoRegion, lies: Lies): IoRegion {
  const arrives = (offset: number, value: number): boolean => lies.write?.(offset, value) ?? true;
  return {
    length: io.length,
    read: async (offset, width) => {
      const value = await io.read(offset, width);
      return lies.read?.(offset, value) ?? value;
    },
    write: async (offset, width, value) => {
      if (arrives(offset, value)) await io.write(offset, width, value);
    },
    post: (offset, width, value) => {
      if (arrives(offset, value)) io.post(offset, width, value);
    },
  };
}
