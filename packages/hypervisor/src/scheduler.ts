// Time and deferred work of the embedded machine.
//
// Work is queued in lanes: one for the driver's tasks, one for each device model. Within a lane tasks run in order, and never two
// at a time. Without a seed lanes run in the order of their tasks, on the host's clock. With a seed the lane that runs next is
// drawn at random, and time is virtual: it jumps to the next callout when nothing else can run. The same seed replays the same
// interleaving.
import { type Callout, type TaskQueue, VirtioFault } from "@virtio/core";
import * as host from "./host-clock.js";

/** Tasks between two looks at the clock. */
const BATCH = 32;
/** Milliseconds after which the host's event loop gets its turn: it costs as much as several requests, and makes garbage. */
const TURN_MS = 1;

/** First in, first out, in a ring that grows: what waits costs no memory of its own. */
class Fifo<T> {
  #ring: (T | undefined)[] = Array.from({ length: 16 });
  #head = 0;
  length = 0;

  push(item: T): void {
    if (this.length === this.#ring.length) this.#grow();
    this.#ring[(this.#head + this.length) & (this.#ring.length - 1)] = item;
    this.length += 1;
  }

  #grow(): void {
    const { length } = this.#ring;
    const items = Array.from(this.#ring, (_, i) => this.#ring[(this.#head + i) & (length - 1)]);
    this.#ring = [...items, ...Array.from<T | undefined>({ length })];
    this.#head = 0;
  }

  shift(): T | undefined {
    if (this.length === 0) return undefined;
    const item = this.#ring[this.#head];
    this.#ring[this.#head] = undefined;
    this.#head = (this.#head + 1) & (this.#ring.length - 1);
    this.length -= 1;
    return item;
  }
}

/** A queue of tasks of one party. */
class Lane implements TaskQueue {
  readonly #scheduler: Scheduler;
  readonly #tasks = new Fifo<() => void>();

  constructor(scheduler: Scheduler) {
    this.#scheduler = scheduler;
  }

  get waiting(): number {
    return this.#tasks.length;
  }

  now(): number {
    return this.#scheduler.now();
  }

  enqueue(task: () => void): void {
    this.#tasks.push(task);
    this.#scheduler.queued(this);
  }

  callout(delayMs: number, task: () => void): Callout {
    return this.#scheduler.callout(delayMs, () => this.enqueue(task));
  }

  /** Runs the oldest task. */
  run(): void {
    this.#tasks.shift()?.();
  }
}

interface Timer {
  readonly due: number;
  readonly task: () => void;
}

/** How a {@link Scheduler} orders work. */
export interface SchedulerOptions {
  /** Virtual time and a random, replayable order. Absent: the host's clock and order of arrival. */
  readonly seed?: number;
}

/** The scheduler of one machine. */
export class Scheduler {
  readonly #random: (() => number) | null;
  readonly #lanes: Lane[] = [];
  /** Without a seed: the lanes of queued tasks, in order of arrival. */
  readonly #order = new Fifo<Lane>();
  readonly #timers = new Set<Timer>();
  readonly #hostTimers = new Set<() => void>();
  #time = 0;
  #running = false;
  #outside = 0;
  #closed = false;

  /** Made once: a closure in #start would cost a context at each of its calls. */
  readonly #turn = (): void => {
    this.#running = false;
    try {
      if (this.#random === null) this.#runInOrder();
      else this.#runDrawn(this.#random);
    } finally {
      // A task that throws must not stop the others; its error goes to the host as uncaught.
      if (this.#more()) this.#start();
    }
  };

  constructor(options: SchedulerOptions = {}) {
    this.#random = options.seed === undefined ? null : xorshift(options.seed);
  }

  /** A new lane. */
  lane(): TaskQueue {
    const lane = new Lane(this);
    this.#lanes.push(lane);
    return lane;
  }

  now(): number {
    return this.#random === null ? host.now() : this.#time;
  }

  /** Counts work outside the machine, such as a file being read: virtual time stands still until it is done. */
  async outside<T>(work: Promise<T>): Promise<T> {
    this.#outside += 1;
    try {
      return await work;
    } finally {
      this.#outside -= 1;
      this.#start();
    }
  }

  callout(delayMs: number, task: () => void): Callout {
    if (this.#closed) return { stop: () => {} };
    if (this.#random === null) {
      const done = (): void => {
        this.#hostTimers.delete(cancel);
        task();
      };
      const cancel = host.timer(delayMs, done);
      this.#hostTimers.add(cancel);
      return {
        stop: () => {
          this.#hostTimers.delete(cancel);
          cancel();
        },
      };
    }
    const timer = { due: this.#time + delayMs, task };
    this.#timers.add(timer);
    this.#start();
    return { stop: () => void this.#timers.delete(timer) };
  }

  /** A lane has a new task. */
  queued(lane: TaskQueue): void {
    if (this.#random === null) this.#order.push(lane as Lane);
    this.#start();
  }

  /** Runs one waiting task of each lane but `except`, now: how a driver that polls drives the devices. */
  step(except: TaskQueue): void {
    for (const lane of this.#lanes) if (lane !== except && lane.waiting > 0) lane.run();
  }

  /** No callout runs any more; tasks that wait, and those that follow from them, still do. */
  close(): void {
    this.#closed = true;
    for (const cancel of this.#hostTimers) cancel();
    this.#hostTimers.clear();
    this.#timers.clear();
  }

  #start(): void {
    if (this.#running) return;
    this.#running = true;
    host.defer(this.#turn);
  }

  #more(): boolean {
    if (this.#random === null) return this.#order.length > 0;
    return (
      this.#lanes.some((lane) => lane.waiting > 0) || (this.#timers.size > 0 && this.#outside === 0)
    );
  }

  /** What is queued, and what is queued meanwhile. */
  #runInOrder(): void {
    const began = host.now();
    do
      for (let n = 0; n < BATCH; n++) {
        const lane = this.#order.shift();
        if (lane === undefined) return;
        // step() may have run it already.
        if (lane.waiting > 0) lane.run();
      }
    while (host.now() - began < TURN_MS);
  }

  /** One task a turn, so that promises settle between two tasks. */
  #runDrawn(random: () => number): void {
    const ready = this.#lanes.filter((lane) => lane.waiting > 0);
    const drawn = ready[Math.floor(random() * ready.length)];
    if (drawn !== undefined) {
      drawn.run();
      return;
    }
    if (this.#outside > 0) return;
    const next = [...this.#timers].reduce<Timer | null>(
      (a, b) => (a === null || b.due < a.due ? b : a),
      null,
    );
    if (next === null) return;
    this.#timers.delete(next);
    this.#time = next.due;
    next.task();
  }
}

/** xorshift32: numbers in [0, 1), the same for the same seed. */
export function xorshift(seed: number): () => number {
  if (!Number.isInteger(seed))
    throw new VirtioFault("INVALID", `seed ${seed} is not a whole number`);
  // A state of 0 would stay 0.
  let state = (seed ^ 0x9e37_79b9) | 0 || 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 0x1_0000_0000;
  };
}
