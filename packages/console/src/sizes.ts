// Sizes of windows: the first port's from the configuration, each port's from RESIZE (virtio 1.4 §5.3.4, §5.3.6.2).
import type { Log, VirtioDevice } from "@virtio/core";
import { CONSOLE_RESIZE_SIZE, ConsoleConfig } from "@virtio/core/console";
import type { Ports } from "./ports.js";

/** Columns and rows of a console's window, in characters. */
export interface WindowSize {
  readonly cols: number;
  readonly rows: number;
}

/** Called as a task after the window of a port, by its number, changed. */
export type SizeListener = (size: WindowSize, port: number) => void;

export class WindowSizes {
  readonly #device: VirtioDevice;
  readonly #ports: Ports;
  readonly #log: Log;
  /** Whether the configuration has a size (SIZE). */
  readonly #configured: boolean;
  /** By number of the port. */
  readonly #sizes = new Map<number, WindowSize>();
  readonly #listeners = new Set<SizeListener>();
  /** The configuration changed since it was read; `reading`: it is being read. */
  #config: "read" | "reading" | "changed" = "read";

  /** @param first - as the configuration had it at attach; null: without SIZE */
  constructor(device: VirtioDevice, ports: Ports, log: Log, first: WindowSize | null) {
    this.#device = device;
    this.#ports = ports;
    this.#log = log;
    this.#configured = first !== null;
    if (first !== null) this.#sizes.set(0, first);
  }

  get(port: number): WindowSize | null {
    return this.#sizes.get(port) ?? null;
  }

  listen(listener: SizeListener): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** What a RESIZE message says; one that is cut short says nothing. */
  resize(port: number, data: Uint8Array): void {
    if (data.length < CONSOLE_RESIZE_SIZE) return;
    const words = new DataView(data.buffer, data.byteOffset);
    this.#set(port, { cols: words.getUint16(0, true), rows: words.getUint16(2, true) });
  }

  #set(port: number, size: WindowSize): void {
    const before = this.#sizes.get(port);
    if (before?.cols === size.cols && before.rows === size.rows) return;
    this.#sizes.set(port, size);
    this.#ports.get(port)?.setSize(size);
    for (const listener of this.#listeners) this.#device.tasks.enqueue(() => listener(size, port));
  }

  /** The port is gone; what the configuration says is kept. */
  forget(port: number): void {
    if (port !== 0) this.#sizes.delete(port);
  }

  /** The configuration may have changed, again while it was read. */
  async configChanged(): Promise<void> {
    if (!this.#configured) return;
    const reading = this.#config !== "read";
    this.#config = "changed";
    if (reading) return;
    try {
      while (this.#config === "changed") {
        this.#config = "reading";
        const { cols, rows } = ConsoleConfig;
        this.#set(0, await this.#device.config.readAll({ cols, rows }));
      }
    } catch (error) {
      this.#log(`cannot read the window size: ${String(error)}`);
    } finally {
      this.#config = "read";
    }
  }
}
