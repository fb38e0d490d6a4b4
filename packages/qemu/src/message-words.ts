// Message-signalled interrupts: QEMU writes a message where its address points, into guest memory, and tells nobody.
import type { DmaMemory, InterruptCounter, TaskQueue } from "@virtio/core";

/** One vector: a word of guest memory. */
interface Vector {
  /** Index of the word. */
  readonly word: number;
  readonly irq: number;
  readonly cookie: number;
  readonly name: string;
  readonly handler: () => void;
  count: number;
}

/** What to program into a device's MSI-X table, and the way back. */
export interface Message {
  /** Guest-physical address of a 32-bit word. */
  readonly address: number;
  /** Never 0. */
  readonly data: number;
  readonly remove: () => void;
}

/** Bytes of guest memory taken at a time; never given back, as a device that was not reset may still write there. */
const PAGE = 4096;
/** Looks in a row, each from setImmediate, after something happened; a look costs some microseconds. */
const EAGER_LOOKS = 100;
/** Milliseconds between two looks when nothing happens: doubled from the first to the second. */
const DELAY_MIN = 1;
const DELAY_MAX = 20;
/** Number of the first message interrupt, as FreeBSD counts them. */
const FIRST_IRQ = 256;

/**
 * The words of all vectors of a machine. A message is a nonzero cookie that appears in its word; the words are looked at from the
 * event loop while anybody handles one: eagerly for a bounded number of turns after a message or a doorbell, then from a timer of
 * 1 ms that slows down to 20 ms.
 */
export class MessageWords {
  readonly #memory: DmaMemory;
  readonly #tasks: TaskQueue;
  readonly #words: Uint32Array;
  #free: { readonly word: number; readonly irq: number }[] = [];
  #made = 0;
  #cookies = 0;
  readonly #vectors = new Set<Vector>();
  #looks = 0;
  #delay = DELAY_MIN;
  #pending:
    | { readonly kind: "immediate" }
    | { readonly kind: "timer"; readonly timer: NodeJS.Timeout }
    | null = null;

  constructor(memory: DmaMemory, tasks: TaskQueue) {
    this.#memory = memory;
    this.#tasks = tasks;
    this.#words = new Uint32Array(memory.buffer);
  }

  /** A word of its own for one vector; `handler` runs as a task for each message. @throws VirtioFault OUT_OF_MEMORY */
  add(name: string, handler: () => void): Message {
    const place = this.#free.shift() ?? this.#grow();
    this.#cookies = (this.#cookies + 1) & 0xff_ffff;
    const cookie = (0x4d00_0000 | this.#cookies) >>> 0;
    const vector: Vector = { ...place, cookie, name, handler, count: 0 };
    Atomics.store(this.#words, place.word, 0);
    this.#vectors.add(vector);
    this.wake();
    return {
      address: this.#memory.base + place.word * 4,
      data: cookie,
      remove: () => {
        if (this.#vectors.delete(vector)) this.#free.push(place);
      },
    };
  }

  /** Something was asked of a device: look eagerly again. */
  wake(): void {
    this.#looks = 0;
    this.#delay = DELAY_MIN;
    if (this.#pending?.kind === "timer") {
      clearTimeout(this.#pending.timer);
      this.#pending = null;
    }
    this.#schedule();
  }

  /** Vectors that somebody handles. */
  counters(): readonly InterruptCounter[] {
    return [...this.#vectors]
      .sort((a, b) => a.irq - b.irq)
      .map(({ irq, name, count }) => ({ irq: `irq${irq}`, names: [name], count }));
  }

  /** Forgets every handler and stops looking. */
  stop(): void {
    this.#vectors.clear();
    if (this.#pending?.kind === "timer") clearTimeout(this.#pending.timer);
    this.#pending = null;
  }

  #grow(): { readonly word: number; readonly irq: number } {
    const { offset } = this.#memory.allocate(PAGE, PAGE);
    const first = FIRST_IRQ + this.#made;
    const words = PAGE / 4;
    this.#made += words;
    this.#free = Array.from({ length: words - 1 }, (_, i) => ({
      word: offset / 4 + 1 + i,
      irq: first + 1 + i,
    }));
    return { word: offset / 4, irq: first };
  }

  #schedule(): void {
    if (this.#pending !== null || this.#vectors.size === 0) return;
    if (this.#looks < EAGER_LOOKS) {
      this.#looks++;
      this.#pending = { kind: "immediate" };
      setImmediate(() => this.#turn());
    } else {
      const timer = setTimeout(() => this.#turn(), this.#delay);
      timer.unref();
      this.#delay = Math.min(DELAY_MAX, this.#delay * 2);
      this.#pending = { kind: "timer", timer };
    }
  }

  #turn(): void {
    this.#pending = null;
    if (this.#look()) this.wake();
    else this.#schedule();
  }

  #look(): boolean {
    let seen = false;
    for (const vector of this.#vectors) {
      if (Atomics.load(this.#words, vector.word) !== vector.cookie) continue;
      // Taken before the handler runs: a message that comes meanwhile makes it run again.
      Atomics.exchange(this.#words, vector.word, 0);
      seen = true;
      vector.count++;
      this.#tasks.enqueue(() => {
        if (this.#vectors.has(vector)) vector.handler();
      });
    }
    return seen;
  }
}
