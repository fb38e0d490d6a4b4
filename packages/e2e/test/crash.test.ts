// Crash consistency: what vtbd said was stable survives a power cut at any step; what it did not say so of may be lost, a sector at a
// time.
import type { Disk } from "@virtio/core";
import { blk, CrashBackend, embedded, FaultBackend, RuleBook } from "@virtio/hypervisor";
import { attach, probe } from "@virtio/pci-transport";
import { type VtblkOptions, vtblk } from "@virtio/vtblk";
import { describe, expect, it } from "vitest";

const SECTOR = 512;
const SECTORS = 16;
/** Power cuts of each moment. */
const CUTS = 8;
const STEPS = 60;

/** What was promised of each sector. Writes are numbered, and a sector holds the number of its write; 0 at the start. */
class Ledger {
  /** Writes that a power cut may leave in a sector. */
  readonly possible: Set<number>[] = Array.from({ length: SECTORS }, () => new Set([0]));
  /** The last write of each sector that is over. */
  #over: readonly number[] = this.possible.map(() => 0);

  asked(sectors: readonly number[], write: number): void {
    for (const sector of sectors) this.possible[sector]?.add(write);
  }

  over(sectors: readonly number[], write: number): void {
    this.#over = this.#over.map((last, sector) => (sectors.includes(sector) ? write : last));
  }

  /** Writes that are over now: those that are stable after a flush that is asked for now. */
  get now(): readonly number[] {
    return this.#over;
  }

  /** These writes are stable: what they replaced is gone. */
  stable(writes: readonly number[]): void {
    for (const [sector, oldest] of writes.entries())
      for (const write of this.possible[sector] ?? [])
        if (write < oldest) this.possible[sector]?.delete(write);
  }
}

/** Cuts the power several times whenever the backend gets a request. */
class Cutter {
  cuts = 0;
  /** Sectors whose last write a cut lost. */
  lost = 0;
  /** Promises that were broken. */
  readonly broken: string[] = [];
  readonly #store: CrashBackend;
  readonly #ledger: Ledger;
  readonly #seed: number;

  constructor(store: CrashBackend, ledger: Ledger, seed: number) {
    this.#store = store;
    this.#ledger = ledger;
    this.#seed = seed;
  }

  cut(): void {
    for (let n = 0; n < CUTS; n++) {
      const content = this.#store.cut(this.#seed * 1_000_003 + this.cuts++);
      for (const [sector, possible] of this.#ledger.possible.entries()) {
        const bytes = content.subarray(sector * SECTOR, (sector + 1) * SECTOR);
        const write = bytes[0] ?? -1;
        if (!bytes.every((byte) => byte === write) || !possible.has(write))
          this.broken.push(`cut ${this.cuts}: sector ${sector} has ${write} of ${[...possible]}`);
        if (write !== Math.max(...possible)) this.lost += 1;
      }
    }
  }
}

/** Up to four writes at a time, of one to three sectors, and flushes among them. */
async function work(disk: Disk, ledger: Ledger, seed: number, through: boolean): Promise<void> {
  let state = seed | 1;
  const draw = (n: number): number => {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    return (state >>> 16) % n;
  };
  let number = 0;
  for (let step = 0; step < STEPS; step++) {
    const writes = Array.from({ length: 1 + draw(4) }, async (_, lane) => {
      // Lanes do not overlap: nobody promises which of two writes under way to one sector is the last.
      const first = lane * 4 + draw(2);
      const sectors = Array.from({ length: 1 + draw(3) }, (_, i) => first + i);
      const write = ++number;
      ledger.asked(sectors, write);
      await disk.write(first * SECTOR, new Uint8Array(sectors.length * SECTOR).fill(write));
      ledger.over(sectors, write);
      if (through) ledger.stable(ledger.now);
    });
    if (!through && draw(3) === 0) {
      const before = ledger.now;
      await disk.flush();
      ledger.stable(before);
    }
    await Promise.all(writes);
  }
}

describe("after a power cut at any step", () => {
  const modes: [what: string, options: VtblkOptions, through: boolean][] = [
    ["flushed, on a writeback cache,", { writecacheMode: 1 }, false],
    ["written, on a writethrough cache,", { writecacheMode: 0 }, true],
  ];
  it.each(modes)(
    "what was %s is there, and the rest is there or not",
    async (_, options, through) => {
      let lost = 0;
      for (let seed = 1; seed <= 6; seed++) {
        const store = new CrashBackend(SECTORS * SECTOR);
        const ledger = new Ledger();
        const cutter = new Cutter(store, ledger, seed);
        const rules = new RuleBook();
        const backend = new FaultBackend(store, () => {
          cutter.cut();
          return undefined;
        });
        const machine = await embedded({ devices: [blk({ backend })], rules, seed });
        const [node] = await probe(machine.buses[0].bus);
        if (node === undefined) throw new Error("no device");
        const disk = await attach(node, vtblk(options));
        await work(disk, ledger, seed, through);
        await disk.flush();
        ledger.stable(ledger.now);
        cutter.cut();
        expect(cutter.broken.slice(0, 3)).toEqual([]);
        expect(rules.violations).toEqual([]);
        expect(ledger.possible.every(({ size }) => size === 1)).toBe(true);
        lost += cutter.lost;
        await machine.close();
      }
      // A test that sees nothing lost shows nothing.
      expect(lost).toBeGreaterThan(0);
    },
  );
});
