// The window in configuration space through which a driver reaches the structures without a BAR (virtio 1.4 §4.1.4.9).
import type { BarSpec, PciConfiguration } from "./configuration.js";

/** Fields of the configuration access capability (§4.1.4.9). Offsets. */
enum WindowField {
  BAR = 4,
  OFFSET = 8,
  LENGTH = 12,
  DATA = 16,
  END = 20,
}

/** Called with what the window names when pci_cfg_data is accessed. */
export type WindowAccess = (bar: number, offset: number, length: number) => void;

/** The window of one function. */
export class ConfigWindow {
  readonly #configuration: PciConfiguration;
  readonly #at: number;
  readonly #bars: readonly BarSpec[];
  readonly #onAccess: WindowAccess;

  /** @param at - offset of the capability */
  constructor(
    configuration: PciConfiguration,
    at: number,
    bars: readonly BarSpec[],
    onAccess: WindowAccess,
  ) {
    this.#configuration = configuration;
    this.#at = at;
    this.#bars = bars;
    this.#onAccess = onAccess;
  }

  /** Before a read of configuration space: fetches what the window shows. */
  read(offset: number, width: number): void {
    if (!this.#hits(offset, width)) return;
    const target = this.#target();
    if (target === null) return;
    const { bar, at, length } = target;
    this.#configuration.set(this.#at + WindowField.DATA, 4, bar.space.read(at, length));
  }

  /** After a write to configuration space: passes on what was written to the window. */
  write(offset: number, width: number): void {
    if (!this.#hits(offset, width)) return;
    const target = this.#target();
    if (target === null) return;
    const { bar, at, length } = target;
    bar.space.write(at, length, this.#configuration.peek(this.#at + WindowField.DATA, length));
  }

  #hits(offset: number, width: number): boolean {
    return offset < this.#at + WindowField.END && offset + width > this.#at + WindowField.DATA;
  }

  /** The window's target, when it is a whole, aligned access to a BAR (§4.1.4.9.1). */
  #target(): { bar: BarSpec; at: number; length: 1 | 2 | 4 } | null {
    const index = this.#configuration.peek(this.#at + WindowField.BAR, 1);
    const at = this.#configuration.peek(this.#at + WindowField.OFFSET, 4);
    const length = this.#configuration.peek(this.#at + WindowField.LENGTH, 4);
    this.#onAccess(index, at, length);
    const bar = this.#bars.find((spec) => spec.index === index);
    if ((length !== 1 && length !== 2 && length !== 4) || bar === undefined) return null;
    return at % length === 0 && at + length <= bar.space.length ? { bar, at, length } : null;
  }
}
