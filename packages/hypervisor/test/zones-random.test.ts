// Random operations on zones: the model against a reference that is written anew here, from §5.2.6, and shares nothing with it.
import { BlockRequestType, BlockStatus } from "@virtio/core/block";
import { expect, it } from "vitest";
import { Zones } from "../src/models/zones.js";

const { OUT, ZONE_APPEND, ZONE_OPEN, ZONE_CLOSE, ZONE_FINISH, ZONE_RESET, ZONE_RESET_ALL } =
  BlockRequestType;

const ZONE = 32;
const CAPACITY = 24;
const COUNT = 8;
const GRANULE = 4;
const MAX_OPEN = 2;
const MAX_ACTIVE = 4;
const MAX_APPEND = 12;

type Name = "empty" | "iopen" | "eopen" | "closed" | "full" | "rdonly" | "offline" | "notwp";
const codes: Readonly<Record<Name, number>> = {
  notwp: 0,
  empty: 1,
  iopen: 2,
  eopen: 3,
  closed: 4,
  rdonly: 13,
  full: 14,
  offline: 15,
};

/** The reference: words for states, counts made anew each time. */
class Reference {
  readonly names: Name[] = Array.from({ length: COUNT }, (_, n) =>
    n === 0 ? "notwp" : n === 6 ? "rdonly" : n === 7 ? "offline" : "empty",
  );
  readonly written: number[] = new Array<number>(COUNT).fill(0);

  count(...names: Name[]): number {
    return this.names.filter((name) => names.includes(name)).length;
  }

  /** The status that opening zone `n` has, and what it does to others. */
  open(n: number, as: "iopen" | "eopen"): number {
    const was = this.names[n] as Name;
    if (was === "eopen" || (was === "iopen" && as === "iopen")) return 0;
    if (was === "empty" && this.count("iopen", "eopen", "closed") === MAX_ACTIVE) return 6;
    if (was !== "iopen" && this.count("iopen", "eopen") === MAX_OPEN) {
      const victim = this.names.indexOf("iopen");
      if (victim < 0) return 5;
      this.names[victim] = "closed";
    }
    this.names[n] = as;
    return 0;
  }

  manage(type: number, sector: number): number {
    if (type === ZONE_RESET_ALL) {
      for (let n = 0; n < COUNT; n++) this.reset(n);
      return 0;
    }
    const n = sector / ZONE;
    const name = this.names[n];
    if (name === undefined) return 3;
    if (type === ZONE_RESET) return this.reset(n) ? 0 : 3;
    if (type === ZONE_OPEN)
      return ["empty", "iopen", "eopen", "closed"].includes(name) ? this.open(n, "eopen") : 3;
    if (type === ZONE_CLOSE) {
      if (!["iopen", "eopen", "closed"].includes(name)) return 3;
      this.names[n] = this.written[n] === 0 ? "empty" : "closed";
      return 0;
    }
    if (!["iopen", "eopen", "full"].includes(name)) return 3;
    this.names[n] = "full";
    return 0;
  }

  reset(n: number): boolean {
    if (["notwp", "rdonly", "offline"].includes(this.names[n] as Name)) return false;
    this.names[n] = "empty";
    this.written[n] = 0;
    return true;
  }

  write(sector: number, sectors: number): number {
    const n = Math.floor(sector / ZONE);
    const last = Math.floor((sector + sectors - 1) / ZONE);
    if (n !== last) return 3;
    const name = this.names[n] as Name;
    if (name === "notwp") return 0;
    if (["rdonly", "offline", "full"].includes(name)) return 3;
    const at = sector - n * ZONE;
    if (at !== this.written[n] || (at + sectors) % GRANULE !== 0) return 4;
    if (at + sectors > CAPACITY) return 3;
    const status = this.open(n, "iopen");
    if (status !== 0) return status;
    this.written[n] = at + sectors;
    if (at + sectors === CAPACITY) this.names[n] = "full";
    return 0;
  }

  append(sector: number, sectors: number): number {
    const n = sector / ZONE;
    const name = this.names[n];
    if (name === undefined || ["notwp", "rdonly", "offline", "full"].includes(name)) return 3;
    if (sectors > MAX_APPEND) return 3;
    const written = this.written[n] as number;
    if (written + sectors > CAPACITY) return 3;
    return this.write(sector + written, sectors);
  }

  /** What reads as zeroes of a zone: from where on; a read-only one was never seen written here. */
  readable(n: number): number {
    return this.names[n] === "notwp" || this.names[n] === "rdonly"
      ? ZONE
      : (this.written[n] as number);
  }
}

const seed = Number(process.env["VIRTIO_TEST_SEED"] ?? Date.now() >>> 0);

console.log(`seed ${seed} (VIRTIO_TEST_SEED=${seed} replays this run)`);

it("zones do at random what §5.2.6 says", () => {
  let state = seed;
  const random = (below: number): number => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  const seen = new Set<string>();
  for (let life = 0; life < 15; life++) {
    const zones = new Zones(
      {
        model: "host-managed",
        zoneSectors: ZONE,
        zoneCapacity: CAPACITY,
        conventional: 1,
        maxOpen: MAX_OPEN,
        maxActive: MAX_ACTIVE,
        readOnly: [6],
        offline: [7],
      },
      GRANULE * 512,
      MAX_APPEND,
      () => COUNT * ZONE,
    );
    const reference = new Reference();
    for (let step = 0; step < 300; step++) {
      const n = random(COUNT);
      // Half of them near the write pointer, so that zones fill up.
      const written = reference.written[n] as number;
      const at = n * ZONE + (random(4) > 0 ? written : random(ZONE));
      const sectors = Math.min(
        COUNT * ZONE - at,
        random(4) > 0 ? GRANULE * (1 + random(3)) : 1 + random(9),
      );
      const start = n * ZONE + (random(8) > 0 ? 0 : 1 + random(ZONE - 1));
      const type =
        [OUT, OUT, OUT, ZONE_APPEND, ZONE_APPEND, ZONE_OPEN, ZONE_CLOSE, ZONE_FINISH, ZONE_RESET][
          random(9)
        ] ?? OUT;
      const command = random(100) === 0 ? ZONE_RESET_ALL : type;
      const what = `seed ${seed}, life ${life}, step ${step}: ${BlockRequestType[command]} ${command === OUT ? at : start}+${sectors}`;
      let got: number;
      let expected: number;
      if (command === OUT)
        [got, expected] = [zones.write(at, sectors, true), reference.write(at, sectors)];
      else if (command === ZONE_APPEND) {
        const before = start + written;
        expected = reference.append(start, sectors);
        const answer = zones.append(start, sectors);
        got = answer.status;
        if (got === 0) expect([what, answer.at]).toEqual([what, before]);
      } else [got, expected] = [zones.manage(command, start), reference.manage(command, start)];
      expect([what, got]).toEqual([what, expected]);
      seen.add(`${BlockRequestType[command]} ${BlockStatus[got]}`);
      const report = new DataView(zones.report(0, 64 + 64 * COUNT)?.buffer ?? new ArrayBuffer(0));
      for (let zone = 0; zone < COUNT; zone++) {
        const base = 64 + 64 * zone;
        const name = reference.names[zone] as Name;
        const shown = [report.getUint8(base + 25), report.getUint32(base, true)];
        expect([what, ...shown]).toEqual([what, codes[name], zone === 0 ? ZONE : CAPACITY]);
        if (["empty", "iopen", "eopen", "closed"].includes(name))
          expect([what, report.getUint32(base + 16, true) - zone * ZONE]).toEqual([
            what,
            reference.written[zone],
          ]);
        const [gap] = zones.unwritten(zone * ZONE, ZONE);
        expect([what, (gap?.[0] ?? (zone + 1) * ZONE) - zone * ZONE]).toEqual([
          what,
          reference.readable(zone),
        ]);
      }
    }
  }
  // Nothing of this was beside the point.
  for (const each of [
    "OUT OK",
    "OUT ZONE_INVALID_CMD",
    "OUT ZONE_UNALIGNED_WP",
    "OUT ZONE_OPEN_RESOURCE",
    "OUT ZONE_ACTIVE_RESOURCE",
    "ZONE_APPEND OK",
    "ZONE_FINISH OK",
    "ZONE_CLOSE ZONE_INVALID_CMD",
    "ZONE_RESET_ALL OK",
  ])
    expect([...seen]).toContain(each);
});
