// What the owner of a balloon has in hand: its target, what the guest says of its memory, hints and reports of free pages.
import { type MemoryRange, VirtioFault } from "@virtio/core";
import { BalloonHint, type BalloonQueue, type BalloonStatistic } from "@virtio/core/balloon";

/** What a device does for its port. */
export interface BalloonBack {
  /** The driver is told of the target, or of the command id. */
  configChanged(): void;
  /** Gives back the buffer of statistics; false: the driver has given none. */
  askStatistics(): boolean;
  /** Gives back what was held. */
  letGo(): void;
}

/** What a driver said of its memory, by tag. Bytes and numbers as they came: above 2^53 they are not exact. */
export type BalloonStatistics = ReadonlyMap<BalloonStatistic, number>;

/** The back of a balloon: give one to `balloon({ port })`. */
export class BalloonPort {
  /** Pages that the device has. */
  pages = 0;
  /** Pages that the driver says that it has. */
  actual = 0;
  /** What free pages are filled with, as the driver says; null without PAGE_POISON, or before it said so. */
  poison: number | null = null;
  /** Of the buffer that came last; null before any. */
  statistics: BalloonStatistics | null = null;
  /** What was hinted of the round that began last, in order. */
  hinted: MemoryRange[] = [];
  /** Bytes that were reported since the device was made. */
  reported = 0;
  /** Called with each range that is reported. */
  onReport: ((range: MemoryRange) => void) | null = null;
  /** Called when the driver wrote how many pages the device has. */
  onActual: ((pages: number) => void) | null = null;
  /** @internal Set by the device. */
  back: BalloonBack | null = null;
  /** @internal What the configuration says. */
  hintCommand: number = BalloonHint.STOP;
  /** @internal Queues whose chains are kept. */
  readonly held: Set<BalloonQueue> = new Set();
  /** @internal The last id of a round. */
  lastHint: number = BalloonHint.DONE;
  /** The driver said that there are no more hints of the round. */
  hintsEnded = true;
  #target = 0;
  #waiting: { resolve: (seen: BalloonStatistics) => void; reject: (fault: VirtioFault) => void }[] =
    [];

  /** Pages of 4 KiB that the device wants to have. */
  get target(): number {
    return this.#target;
  }

  set target(pages: number) {
    this.#target = pages >>> 0;
    this.back?.configChanged();
  }

  /**
   * Asks the driver for its statistics, and waits for them.
   * @throws VirtioFault BUSY: the driver has given the device no buffer to ask with; CLOSED: the device was reset
   */
  requestStatistics(): Promise<BalloonStatistics> {
    if (this.back?.askStatistics() !== true)
      return Promise.reject(new VirtioFault("BUSY", "the driver waits for no question"));
    return new Promise((resolve, reject) => {
      this.#waiting.push({ resolve, reject });
    });
  }

  /** @internal The driver's statistics came. */
  tell(statistics: BalloonStatistics): void {
    this.statistics = statistics;
    for (const { resolve } of this.#waiting.splice(0)) resolve(statistics);
  }

  /** @internal The device was reset. */
  forget(): void {
    const fault = new VirtioFault("CLOSED", "the balloon was reset");
    for (const { reject } of this.#waiting.splice(0)) reject(fault);
  }

  /**
   * Begins a round of hints: what the driver hints is in `hinted`. No id comes again while the round that had it may go on (virtio 1.4
   * §5.5.6.5.2): they count up.
   * @returns the round's id
   */
  startHinting(): number {
    this.lastHint = this.lastHint >= 0xffff_ffff ? BalloonHint.DONE + 1 : this.lastHint + 1;
    this.hinted = [];
    this.hintsEnded = false;
    this.#command(this.lastHint);
    return this.lastHint;
  }

  /** Wants no more hints; what was hinted still counts. */
  stopHinting(): void {
    this.#command(BalloonHint.STOP);
  }

  /** Needs what was hinted no more. */
  finishHinting(): void {
    this.#command(BalloonHint.DONE);
  }

  #command(id: number): void {
    this.hintCommand = id;
    this.back?.configChanged();
  }

  /** Keeps what comes on a queue from now on, until letGo(): a slow device. */
  hold(queue: BalloonQueue): void {
    this.held.add(queue);
  }

  letGo(): void {
    this.held.clear();
    this.back?.letGo();
  }
}
