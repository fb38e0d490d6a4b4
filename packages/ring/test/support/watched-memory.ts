// Stands in for src/views.ts and src/order.ts: every access that either end makes to shared memory passes through here. A test can
// run anything before any single access, and stores are seen as late as memory order allows.
//
// The model is a store buffer for each end: a plain store stays in the end's own buffer, past all later loads, until an ordered
// store or the end of the step sends it to memory; an ordered store is seen at once, after everything stored before it. Loads never
// wait. That is weaker than x86 and, for one writer, as weak as the rules that the rings rely on.

export type End = "driver" | "device";

/** What is wrong with the ordered stores. */
export type OrderMutant =
  /** Nothing. */
  | "none"
  /** No fence after them: later loads are done before others see them. */
  | "late"
  /** No fence before them: others see them before what was stored earlier. */
  | "early";

interface Store {
  readonly memory: ArrayBufferLike;
  readonly at: number;
  readonly bytes: Uint8Array;
}

type Words = Uint16Array | Uint32Array | Int32Array;

class WatchedMemory {
  /** Whose views are made now. */
  maker: End = "driver";
  /** Whose accesses are counted. */
  watched: End | null = null;
  mutant: OrderMutant = "none";
  /** The end with the mutant. */
  mutated: End = "driver";
  /** Called before each access of the watched end, with its number. */
  onAccess: ((n: number) => void) | null = null;
  #count = 0;
  #inside = false;
  readonly #buffers: Record<End, Store[]> = { driver: [], device: [] };
  readonly #ends = new WeakMap<Words, { readonly end: End; readonly words: Words }>();

  reset(): void {
    this.maker = "driver";
    this.watched = null;
    this.mutant = "none";
    this.mutated = "driver";
    this.onAccess = null;
    this.#inside = false;
    this.#buffers.driver = [];
    this.#buffers.device = [];
  }

  /** Counts the accesses of `end` in one step, from 0. At the end of the step `onAccess` is called once more, then all is stored. */
  watch(end: End, onAccess: ((n: number) => void) | null, step: () => void): number {
    this.watched = end;
    this.onAccess = onAccess;
    this.#count = 0;
    step();
    this.#pass(end);
    this.watched = null;
    this.drain(end);
    return this.#count;
  }

  #pass(end: End): void {
    if (end !== this.watched || this.#inside) return;
    this.#inside = true;
    this.onAccess?.(this.#count);
    this.#inside = false;
    this.#count += 1;
  }

  /** Everything that `end` stored is seen. */
  drain(end: End): void {
    for (const { memory, at, bytes } of this.#buffers[end]) new Uint8Array(memory).set(bytes, at);
    this.#buffers[end].length = 0;
  }

  view<W extends Words>(words: W): W {
    const end = this.maker;
    const proxy = new Proxy(words, {
      get: (target, key) => {
        const i = typeof key === "string" ? Number(key) : Number.NaN;
        if (Number.isInteger(i)) return this.#load(end, target, i);
        const value: unknown = Reflect.get(target, key, target);
        return typeof value === "function" ? value.bind(target) : value;
      },
      set: (target, key, value: number) => {
        this.#store(end, target, Number(key), value);
        return true;
      },
    });
    this.#ends.set(proxy, { end, words });
    return proxy;
  }

  load(proxy: Words, i: number): number {
    const { end, words } = this.#of(proxy);
    return this.#load(end, words, i);
  }

  store(proxy: Words, i: number, value: number): void {
    const { end, words } = this.#of(proxy);
    const mutant = end === this.mutated ? this.mutant : "none";
    if (mutant === "late") {
      this.#store(end, words, i, value);
      return;
    }
    this.#pass(end);
    if (mutant === "none") this.drain(end);
    words[i] = value;
  }

  #of(proxy: Words): { readonly end: End; readonly words: Words } {
    const found = this.#ends.get(proxy);
    if (found === undefined) throw new Error("an ordered access to memory that is not shared");
    return found;
  }

  #load(end: End, words: Words, i: number): number {
    this.#pass(end);
    const width = words.BYTES_PER_ELEMENT;
    const from = words.byteOffset + i * width;
    let value = words[i] ?? 0;
    // An end sees its own stores at once, whatever their width.
    for (const { at, bytes } of this.#buffers[end])
      for (let k = 0; k < bytes.length; k++) {
        const shift = (at + k - from) * 8;
        if (shift >= 0 && shift < width * 8)
          value = ((value & ~(0xff << shift)) | ((bytes[k] ?? 0) << shift)) >>> 0;
      }
    return words instanceof Int32Array ? value | 0 : value;
  }

  #store(end: End, words: Words, i: number, value: number): void {
    this.#pass(end);
    const width = words.BYTES_PER_ELEMENT;
    const at = words.byteOffset + i * width;
    const bytes = new Uint8Array(width);
    for (let k = 0; k < width; k++) bytes[k] = (value >>> (8 * k)) & 0xff;
    this.#buffers[end].push({ at, bytes, memory: words.buffer });
  }
}

export const watchedMemory: WatchedMemory = new WatchedMemory();

export function words16(buffer: ArrayBufferLike, offset: number, length: number): Uint16Array {
  return watchedMemory.view(new Uint16Array(buffer, offset, length));
}

export function words32(buffer: ArrayBufferLike, offset: number, length: number): Uint32Array {
  return watchedMemory.view(new Uint32Array(buffer, offset, length));
}

export function loadIndex(ring: Uint16Array, at: number): number {
  return watchedMemory.load(ring, at);
}

export function storeIndex(ring: Uint16Array, at: number, value: number): void {
  watchedMemory.store(ring, at, value);
}

export function loadWord(ring: Int32Array, at: number): number {
  return watchedMemory.load(ring, at);
}

export function storeWord(ring: Int32Array, at: number, value: number): void {
  watchedMemory.store(ring, at, value);
}

export function signed32(buffer: ArrayBufferLike, offset: number, length: number): Int32Array {
  return watchedMemory.view(new Int32Array(buffer, offset, length));
}

export function peekWord(ring: Int32Array, at: number): number {
  return ring[at] as number;
}

export function moved(ring: Uint16Array, at: number, from: number): boolean {
  return ring[at] !== from;
}
