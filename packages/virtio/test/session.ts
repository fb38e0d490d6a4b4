// A shell on a fake machine, with files in memory.
import { VirtioFault } from "@virtio/core";
import {
  type Host,
  type HostFile,
  Kernel,
  load,
  parseKernelConf,
  parseLoaderConf,
  Shell,
} from "../src/index.js";
import { FakeBlockDriver, FakeMachine, fakeModules, type MemoryDisk } from "./fakes.js";

/** Files by path, in memory. */
class MemoryHost implements Host {
  readonly files = new Map<string, Uint8Array>();
  readonly opened: string[] = [];
  closed = 0;
  synced = 0;

  async open(path: string): Promise<HostFile> {
    if (!this.files.has(path))
      throw new VirtioFault("NOT_FOUND", `${path}: No such file or directory`);
    return this.#file(path);
  }

  async create(path: string): Promise<HostFile> {
    if (!this.files.has(path)) this.files.set(path, new Uint8Array(0));
    return this.#file(path);
  }

  time(): number {
    return 1_700_000_000_000;
  }

  async list(prefix: string): Promise<readonly string[]> {
    return [...this.files.keys()].filter((path) => path.startsWith(prefix));
  }

  bytes(path: string): Uint8Array {
    return this.files.get(path) ?? new Uint8Array(0);
  }

  #file(path: string): HostFile {
    this.opened.push(path);
    const resize = (size: number): Uint8Array => {
      const bytes = new Uint8Array(size);
      bytes.set(this.bytes(path).subarray(0, size));
      this.files.set(path, bytes);
      return bytes;
    };
    return {
      size: this.bytes(path).length,
      read: async (position, into) => {
        const part = this.bytes(path).subarray(position, position + into.length);
        into.set(part);
        return part.length;
      },
      write: async (position, from) => {
        resize(Math.max(this.bytes(path).length, position + from.length)).set(from, position);
      },
      truncate: async (size) => {
        resize(size);
      },
      sync: async () => {
        this.synced++;
      },
      close: async () => {
        this.closed++;
      },
    };
  }
}

/** A shell, and what it printed. */
export interface TestShell {
  readonly shell: Shell;
  readonly kernel: Kernel;
  readonly machine: FakeMachine;
  readonly host: MemoryHost;
  readonly disks: readonly MemoryDisk[];
  /** Runs a line: status, standard output, standard error. */
  readonly run: (
    line: string,
    signal?: AbortSignal,
  ) => Promise<{ status: number; out: string; err: string }>;
}

/** A shell on a booted kernel. */
export async function testShell({
  machine = new FakeMachine(),
  driver = new FakeBlockDriver(),
  modules = fakeModules(driver),
  kernelConf = "include GENERIC\nident GENERIC",
  loaderConf = "",
  terminal = false,
} = {}): Promise<TestShell> {
  const image = await load({
    modules,
    kernelConf: parseKernelConf(kernelConf),
    settings: parseLoaderConf(loaderConf),
  });
  const kernel = new Kernel({ machine, image });
  await kernel.boot();
  const host = new MemoryHost();
  const printed = { out: "", err: "" };
  const shell = new Shell({
    kernel,
    host,
    terminal,
    out: (text) => {
      printed.out += text;
    },
    err: (text) => {
      printed.err += text;
    },
  });
  const run: TestShell["run"] = async (line, signal) => {
    printed.out = "";
    printed.err = "";
    const status = await shell.run(line, signal);
    return { status, ...printed };
  };
  return { shell, kernel, machine, host, disks: driver.disks, run };
}
