// A console on the embedded machine, its other end in the test's hands.
import { type Port, SysctlTree, type VirtioNode } from "@virtio/core";
import {
  ConsoleHost,
  type ConsoleHostPortOptions,
  consoleDevice,
  type EmbeddedConsoleOptions,
  type EmbeddedMachine,
  embedded,
  RuleBook,
} from "@virtio/hypervisor";
import { attach, probe } from "@virtio/pci-transport";
import { onTestFinished } from "vitest";
import { type ConsoleDevice, type VtconOptions, vtcon } from "../src/index.js";

/** A console, its machine, its other end, the rule book that watches it, and what was logged. */
export interface Bench {
  readonly device: ConsoleDevice;
  readonly host: ConsoleHost;
  readonly machine: EmbeddedMachine;
  readonly node: VirtioNode;
  readonly rules: RuleBook;
  readonly lines: string[];
  readonly published: Port[];
  /** `dev.vtcon.0` is `vtcon` here. */
  readonly sysctl: SysctlTree;
}

export interface BenchOptions extends Omit<EmbeddedConsoleOptions, "host" | "ports"> {
  /** Default: one, a console. */
  readonly ports?: readonly ConsoleHostPortOptions[];
  readonly seed?: number;
  readonly driver?: VtconOptions;
  /** The machine is closed by the caller. Default: when the test is over. */
  readonly keep?: boolean;
}

/** A machine with one console, and no driver yet. */
export async function machineOf(
  options: BenchOptions = {},
): Promise<Pick<Bench, "host" | "machine" | "node" | "rules">> {
  const { ports, seed, driver: _, keep = false, ...device } = options;
  const rules = new RuleBook();
  const host = new ConsoleHost(ports);
  const machine = await embedded({
    devices: [consoleDevice({ ...device, host })],
    rules,
    ...(seed === undefined ? {} : { seed }),
    memory: 16 << 20,
  });
  if (!keep) onTestFinished(() => machine.close());
  const [node] = await probe(machine.buses[0].bus);
  if (node === undefined) throw new Error("no device");
  return { host, machine, node, rules };
}

/** Attaches vtcon to one console. */
export async function bench(options: BenchOptions = {}): Promise<Bench> {
  const made = await machineOf(options);
  const lines: string[] = [];
  const published: Port[] = [];
  const sysctl = new SysctlTree();
  const device = await attach(made.node, vtcon(options.driver), {
    log: (line) => lines.push(line),
    verbose: (line) => lines.push(line),
    sysctl: sysctl.node("vtcon", ""),
    publish: (what) => {
      if (what.kind === "port") published.push(what);
      return () => {
        published.splice(published.indexOf(what as Port), 1);
      };
    },
  });
  return { ...made, device, lines, published, sysctl };
}

/** Bytes that differ from place to place and from seed to seed. */
export function pattern(length: number, seed = 1): Uint8Array {
  const bytes = new Uint8Array(length);
  let state = seed | 1;
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    bytes[i] = state >>> 24;
  }
  return bytes;
}

/** Reads exactly so many bytes of a stream. */
export async function read(
  readable: ReadableStream<Uint8Array>,
  length: number,
): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  const reader = readable.getReader();
  try {
    for (let at = 0; at < length; ) {
      const { value, done } = await reader.read();
      if (done) throw new Error(`the stream ended after ${at} of ${length} bytes`);
      if (at + value.length > length) throw new Error(`more than ${length} bytes`);
      bytes.set(value, at);
      at += value.length;
    }
    return bytes;
  } finally {
    reader.releaseLock();
  }
}

/** Writes, and waits until the other end has it. */
export async function write(
  writable: WritableStream<Uint8Array>,
  bytes: Uint8Array,
): Promise<void> {
  const writer = writable.getWriter();
  try {
    await writer.write(bytes);
  } finally {
    writer.releaseLock();
  }
}

export const text = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);
export const bytesOf = (text: string): Uint8Array => new TextEncoder().encode(text);

/** Turns of the event loop until it is so. */
export async function until(done: () => boolean): Promise<void> {
  for (let turn = 0; !done(); turn++) {
    if (turn === 5000) throw new Error("it never came");
    await turns(1);
  }
}

/** So many turns of the event loop: what is under way gets on. */
export async function turns(count = 20): Promise<void> {
  for (let n = 0; n < count; n++) await new Promise((resolve) => setImmediate(resolve));
}

/** `done`, or the code and errno of what it rejected with. */
export const outcome = (work: Promise<unknown>): Promise<string> =>
  work.then(
    () => "done",
    (fault: { code?: string; errno?: string }) =>
      fault.code === undefined ? String(fault) : `${fault.code} ${fault.errno}`,
  );
