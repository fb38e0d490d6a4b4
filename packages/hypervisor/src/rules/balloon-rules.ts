// Rules that a balloon sees: virtio 1.4 §5.5.3.1, §5.5.6, and the legacy sections there.
import { type Callout, ReservedFeature, type TaskQueue } from "@virtio/core";
import {
  BALLOON_HINT_FIRST,
  BALLOON_HINT_SIZE,
  BALLOON_STATISTIC_SIZE,
  BalloonConfig,
  BalloonFeature,
  BalloonHint,
  BalloonStatistic,
} from "@virtio/core/balloon";
import { hasBit } from "../feature-words.js";
import type { RuleBook } from "./rule-book.js";

/** What the rules need to know of a balloon. */
export interface ObservedBalloon {
  readonly name: string;
  readonly tasks: TaskQueue;
  /** Words of what the device offers, and of what the driver accepted so far. */
  readonly offered: ArrayLike<number>;
  readonly accepted: ArrayLike<number>;
  /** Pages that the device has, and of these those whose request is not used yet. */
  readonly pages: ReadonlySet<number>;
  readonly pending: ReadonlySet<number>;
  /** What the configuration says. */
  readonly target: number;
  readonly hintCommand: number;
}

const [NUM_PAGES_AT] = BalloonConfig.numPages;
const [ACTUAL_AT] = BalloonConfig.actual;
const [HINT_AT] = BalloonConfig.freePageHintCmdId;
const [POISON_AT] = BalloonConfig.poisonVal;

/** How long a driver may take to make a buffer of statistics available. */
const STATISTICS_MS = 5000;

const hex = (value: number): string => `0x${(value >>> 0).toString(16)}`;

const swap32 = (value: number): number =>
  ((value << 24) | ((value & 0xff00) << 8) | ((value >>> 8) & 0xff00) | (value >>> 24)) >>> 0;
const swap16 = (value: number): number => ((value & 0xff) << 8) | (value >>> 8);

const isTag = (value: number): boolean => BalloonStatistic[value] !== undefined;

/** Watches the driver of one balloon. */
export class BalloonRules {
  readonly #book: RuleBook;
  readonly #balloon: ObservedBalloon;
  /** The device was looked at since it runs. */
  #started = false;
  #poisonWritten = false;
  #actual = 0;
  /** The last two targets that the driver read: it may go by either. */
  #targets: number[] = [];
  /** It deflated though the device wants no page back: right only if it gives the device up. */
  #unsolicited: string | null = null;
  /** The command id as the driver read it last. */
  #commandSeen: number | null = null;
  /** The round that the driver is in, and whether it came to an end. */
  #round: number | null = null;
  #roundEnded = true;
  /** Runs out when a buffer of statistics is overdue. */
  #overdue: Callout | null = null;
  #expected: "BALLOON-STATS-2" | "BALLOON-STATS-3" | null = null;
  /** Tags of the first buffer of statistics. */
  #tags: string | null = null;

  constructor(book: RuleBook, balloon: ObservedBalloon) {
    this.#book = book;
    this.#balloon = balloon;
  }

  #check(clause: string, kept: boolean, what: () => string): void {
    this.#book.check(clause, kept, this.#balloon.name, what);
  }

  #has(bit: BalloonFeature | ReservedFeature): boolean {
    return hasBit(this.#balloon.accepted, bit);
  }

  /** Words of a legacy driver are in its own byte order, which is this host's. */
  get #legacy(): boolean {
    return !this.#has(ReservedFeature.VERSION_1);
  }

  /** The driver runs: its features are settled. */
  start(): void {
    if (this.#started) return;
    this.#started = true;
    if (hasBit(this.#balloon.offered, BalloonFeature.MUST_TELL_HOST))
      this.#check(
        "BALLOON-FEAT-1",
        this.#has(BalloonFeature.MUST_TELL_HOST),
        () => "MUST_TELL_HOST was offered and not accepted",
      );
    if (this.#has(BalloonFeature.PAGE_POISON))
      this.#check(
        "BALLOON-POISON-2",
        this.#poisonWritten,
        () => "PAGE_POISON was accepted, and the device runs without a poison_val",
      );
    if (this.#has(BalloonFeature.STATS_VQ)) this.#expectStatistics("BALLOON-STATS-2");
  }

  /** Before the device forgets. `idle`: it holds no request. */
  reset(idle: boolean): void {
    const { size } = this.#balloon.pages;
    if (idle && this.#started)
      this.#check(
        "BALLOON-OP-11",
        this.#actual === size,
        () => `actual is ${this.#actual} at the end, and the device has ${size} pages`,
      );
    this.#started = false;
    this.#poisonWritten = false;
    this.#actual = 0;
    this.#targets = [];
    this.#unsolicited = null;
    this.#commandSeen = null;
    this.#round = null;
    this.#roundEnded = true;
    this.#tags = null;
    this.#overdue?.stop();
  }

  // ── configuration ───────────────────────────────────────────────────────────

  configRead(offset: number): void {
    if (offset >= HINT_AT && offset < POISON_AT) this.#commandSeen = this.#balloon.hintCommand;
    if (offset >= NUM_PAGES_AT + 4) return;
    this.#goesOn();
    this.#targets = [this.#balloon.target, ...this.#targets].slice(0, 2);
  }

  configWrite(offset: number, width: number, value: number): void {
    if (offset >= POISON_AT) {
      this.#poisonWritten = true;
      this.#check("BALLOON-POISON-3", !this.#started, () => "poison_val is written while it runs");
    } else if (offset >= ACTUAL_AT && offset < HINT_AT) this.#actualWrite(offset, width, value);
  }

  #actualWrite(offset: number, width: number, value: number): void {
    const { size } = this.#balloon.pages;
    const what = (): string =>
      `${width} bytes, ${hex(value)}, to actual; the device has ${size} pages`;
    const whole = offset === ACTUAL_AT && width === 4;
    if (this.#legacy) {
      this.#check("BALLOON-OP-LEGACY-2", whole, what);
      if (size > 0)
        this.#check("BALLOON-CFG-LEGACY-1", value === size || swap32(value) !== size, what);
    }
    if (!whole) return;
    this.#actual = value;
    this.#check("BALLOON-OP-11", value === size, what);
    this.#check("BALLOON-OP-6", value >= size, what);
  }

  // ── the balloon ─────────────────────────────────────────────────────────────

  /** The driver does more than to give the device up. */
  #goesOn(): void {
    const what = this.#unsolicited;
    this.#unsolicited = null;
    if (what !== null) this.#check("BALLOON-OP-4", false, () => what);
  }

  /** A page of an inflate request, before the device takes it. */
  inflating(page: number): void {
    this.#goesOn();
    this.#check(
      "BALLOON-OP-6",
      !this.#balloon.pages.has(page),
      () => `page ${hex(page)} is in the balloon already, and was never deflated`,
    );
    const { target, pages } = this.#balloon;
    if (Math.max(target, ...this.#targets) > pages.size)
      this.#check("BALLOON-OP-1", true, () => "");
  }

  /** A page of an inflate request that is being used. `untouched`: it is as the device left it. */
  inflated(page: number, untouched: boolean): void {
    this.#check(
      "BALLOON-OP-9",
      untouched,
      () => `page ${hex(page)} was written to before its inflate request was used`,
    );
  }

  /** A deflate request came. */
  deflating(): void {
    const { pages } = this.#balloon;
    const least = Math.min(...this.#targets);
    if (this.#has(BalloonFeature.DEFLATE_ON_OOM) || this.#targets.length === 0) return;
    if (least < pages.size) this.#check("BALLOON-OP-4", true, () => "");
    else
      this.#unsolicited ??= `pages are taken from a balloon of ${pages.size}, target ${least}, without DEFLATE_ON_OOM`;
  }

  /** A page of a deflate request: when it comes, and again when it is used. */
  deflated(page: number, untouched: boolean): void {
    const { pages, pending } = this.#balloon;
    this.#check(
      "BALLOON-OP-10",
      pages.has(page) && !pending.has(page),
      () => `page ${hex(page)} is deflated, and its inflate request was never used`,
    );
    if (this.#has(BalloonFeature.MUST_TELL_HOST) && pages.has(page))
      this.#check(
        "BALLOON-OP-7",
        untouched,
        () => `page ${hex(page)} was written to before the device was told (MUST_TELL_HOST)`,
      );
  }

  // ── statistics ──────────────────────────────────────────────────────────────

  /** The buffer of statistics is used. */
  statisticsAsked(): void {
    this.#expectStatistics("BALLOON-STATS-3");
  }

  #expectStatistics(clause: "BALLOON-STATS-2" | "BALLOON-STATS-3"): void {
    this.#expected = clause;
    this.#overdue = this.#balloon.tasks.callout(STATISTICS_MS, () => {
      this.#expected = null;
      this.#check(clause, false, () => `no buffer of statistics after ${STATISTICS_MS} ms`);
    });
  }

  /** A buffer came. `held`: the device has another. */
  statistics(bytes: Uint8Array, held: boolean): void {
    this.#overdue?.stop();
    if (this.#expected !== null) this.#check(this.#expected, true, () => "");
    this.#expected = null;
    this.#check("BALLOON-STATS-1", !held, () => "a second buffer of statistics");
    this.#check(
      "BALLOON-STATS-5",
      bytes.length % BALLOON_STATISTIC_SIZE === 0,
      () => `${bytes.length} bytes of statistics`,
    );
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const tags: number[] = [];
    for (let at = 0; at + BALLOON_STATISTIC_SIZE <= bytes.length; at += BALLOON_STATISTIC_SIZE)
      tags.push(view.getUint16(at, true));
    const known = new Set(tags.filter(isTag));
    const foreign = tags.find((tag) => !isTag(tag) && isTag(swap16(tag)));
    if (this.#legacy)
      this.#check(
        "BALLOON-STATS-LEGACY-1",
        foreign === undefined,
        () => `tag ${hex(foreign ?? 0)} is in the other byte order`,
      );
    this.#check(
      "BALLOON-STATS-4",
      known.size > 0 && known.size === tags.filter(isTag).length,
      () => `statistics ${tags.join(", ")}`,
    );
    const list = tags.sort((a, b) => a - b).join(", ");
    this.#check(
      "BALLOON-STATS-8",
      this.#tags === null || this.#tags === list,
      () => `statistics ${list}, and before ${this.#tags}`,
    );
    this.#tags ??= list;
  }

  // ── hints ───────────────────────────────────────────────────────────────────

  /** A readable buffer of the queue of hints: a command id. `lastId`: the youngest that there was. */
  hintCommand(id: number, length: number, lastId: number): void {
    const { hintCommand } = this.#balloon;
    this.#check("BALLOON-HINT-1", length === BALLOON_HINT_SIZE, () => `${length} bytes of an id`);
    if (this.#legacy && hintCommand >= BALLOON_HINT_FIRST)
      this.#check(
        "BALLOON-HINT-LEGACY-1",
        id === hintCommand || swap32(id) !== hintCommand,
        () => `id ${hex(id)} is ${hintCommand} in the other byte order`,
      );
    if (id === BalloonHint.STOP) {
      this.#check("BALLOON-HINT-6", true, () => "");
      this.#roundEnded = true;
      return;
    }
    this.#check("BALLOON-HINT-3", id !== this.#round, () => `id ${id} comes again`);
    this.#check(
      "BALLOON-HINT-6",
      this.#roundEnded,
      () => `round ${id} begins, and round ${this.#round} was not ended by STOP`,
    );
    // One of before may be on its way when a round begins.
    this.#check(
      "BALLOON-HINT-2",
      id === hintCommand || (id >= BALLOON_HINT_FIRST && id <= lastId),
      () => `id ${id}, and the device's is ${hintCommand}`,
    );
    this.#round = id;
    this.#roundEnded = false;
  }

  /** A writable buffer of the queue of hints. */
  hinting(): void {
    this.#check(
      "BALLOON-HINT-2",
      this.#round !== null && !this.#roundEnded,
      () => "free pages are hinted, and no round was begun by its id",
    );
    const seen = this.#commandSeen ?? BALLOON_HINT_FIRST;
    this.#check(
      "BALLOON-HINT-5",
      seen >= BALLOON_HINT_FIRST,
      () => `free pages are hinted though the driver read command ${seen}`,
    );
    this.#check("BALLOON-HINT-4", true, () => "");
  }

  // ── reports ─────────────────────────────────────────────────────────────────

  /** A range is reported. `filled`: it is full of poison_val; null without PAGE_POISON. */
  reporting(length: number, filled: boolean | null): void {
    if (filled !== null)
      this.#check(
        "BALLOON-REPORT-2",
        filled,
        () => `${length} bytes are reported that are not full of poison_val`,
      );
  }

  /** A reported range is being used. */
  reported(length: number, untouched: boolean): void {
    this.#check(
      "BALLOON-REPORT-3",
      untouched,
      () => `${length} bytes were written to before their report was used`,
    );
  }
}
