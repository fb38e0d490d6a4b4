import { VirtioFault } from "@virtio/core";
import { describe, expect, it } from "vitest";
import { diskContract } from "../src/contract.js";
import {
  type Bio,
  BioCommand,
  type DiskEvents,
  type DiskProvider,
  type RangeLimits,
  StrategyDisk,
} from "../src/index.js";

/** A provider over an array that has room for `room` bios and answers when told. */
class ArrayProvider implements DiskProvider {
  readonly name = "md0";
  readonly ident = "";
  readonly sectorSize = 512;
  readonly readOnly: boolean = false;
  readonly maxTransfer = 19 * 512;
  readonly stripeSize = 4096;
  readonly stripeOffset = 0;
  readonly firmwareHeads = 0;
  readonly firmwareSectors = 0;
  discard: RangeLimits | null = { max: 10 * 512, align: 8 * 512 };
  writeZeroes: RangeLimits | null = { max: 7 * 512, align: 0 };
  secureErase: RangeLimits | null = { max: 1 << 30, align: 0 };
  readonly zones = null;
  barrier = false;
  bytes = new Uint8Array(8 << 20);
  readonly taken: Bio[] = [];
  starts = 0;
  time = 0;
  gone: VirtioFault | null = null;
  events: DiskEvents = { done: () => {}, room: () => {}, resized: () => {} };
  #end: (fault: null) => void = () => {};
  readonly closed: Promise<VirtioFault | null> = new Promise((resolve) => {
    this.#end = resolve;
  });

  constructor(
    readonly room: number,
    readonly answersAlone: boolean,
  ) {}

  get mediaSize(): number {
    return this.bytes.length;
  }

  now(): number {
    return this.time;
  }

  connect(events: DiskEvents): void {
    this.events = events;
  }

  strategy(bio: Bio): boolean {
    if (this.gone !== null) {
      this.events.done(bio, this.gone);
      return true;
    }
    if (this.taken.length === this.room) return false;
    this.taken.push(bio);
    return true;
  }

  start(): void {
    this.starts += 1;
    if (this.answersAlone) queueMicrotask(() => this.answer(this.taken.length));
  }

  /** Does the oldest `count` bios. */
  answer(count: number, fault: VirtioFault | null = null): void {
    for (const bio of this.taken.splice(0, count)) {
      const { command, position, length, data } = bio;
      if (fault === null) {
        if (command === BioCommand.READ)
          data?.set(this.bytes.subarray(position, position + length));
        else if (command === BioCommand.WRITE) this.bytes.set(data ?? [], position);
        else if (command !== BioCommand.FLUSH) this.bytes.fill(0, position, position + length);
      }
      this.events.done(bio, fault);
    }
    this.events.room();
  }

  inPlace(data: Uint8Array): boolean {
    return data.buffer === this.bytes.buffer;
  }

  async detach(): Promise<void> {
    this.gone ??= new VirtioFault("CLOSED", "the disk is detached", { device: this.name });
    this.#end(null);
  }

  async suspend(): Promise<void> {}
  async resume(): Promise<void> {}
}

describe("a disk over a strategy keeps the Disk contract", () => {
  const disk = new StrategyDisk(new ArrayProvider(7, true));
  for (const { name, run } of diskContract) it(name, () => run(disk));
});

describe("a disk over a strategy", () => {
  it("splits a transfer into whole sectors below the provider's limit, and starts once", async () => {
    const provider = new ArrayProvider(100, false);
    const reading = new StrategyDisk(provider).read(512, new Uint8Array(30 * 512));
    expect(
      provider.taken.map(({ position, data }) => [position / 512, (data?.length ?? 0) / 512]),
    ).toEqual([
      [1, 19],
      [20, 11],
    ]);
    expect(provider.starts).toBe(1);
    provider.answer(2);
    await reading;
  });

  it("keeps what finds no room, in order, and goes on when there is room", async () => {
    const provider = new ArrayProvider(2, false);
    const disk = new StrategyDisk(provider);
    const writes = [1, 2, 3, 4, 5].map((n) => disk.write(n * 512, new Uint8Array(512).fill(n)));
    const seen: number[] = [];
    while (provider.taken.length > 0) {
      seen.push(...provider.taken.map(({ position }) => position / 512));
      provider.answer(provider.taken.length);
    }
    await Promise.all(writes);
    expect(seen).toEqual([1, 2, 3, 4, 5]);
  });

  it("rejects with the first fault, and only when no part is left with the device", async () => {
    const provider = new ArrayProvider(100, false);
    let over = false;
    const reading = new StrategyDisk(provider)
      .read(0, new Uint8Array(30 * 512))
      .catch((error: unknown) => {
        over = true;
        return error;
      });
    const fault = new VirtioFault("IO", "bad sector");
    provider.answer(1, fault);
    await new Promise((resolve) => setImmediate(resolve));
    expect(over).toBe(false);
    provider.answer(1);
    expect(await reading).toBe(fault);
  });

  it("takes an aborted transfer's waiting parts out, and lets the others go on", async () => {
    const provider = new ArrayProvider(1, false);
    const disk = new StrategyDisk(provider);
    const controller = new AbortController();
    const first = disk.read(0, new Uint8Array(60 * 512), { signal: controller.signal });
    const second = disk.read(512, new Uint8Array(512));
    controller.abort(new Error("enough"));
    await expect(first).rejects.toThrow("enough");
    expect(provider.taken).toHaveLength(1);
    expect(provider.taken[0]?.data).toBeNull();
    provider.answer(1);
    provider.answer(1);
    await second;
  });

  it("hangs on a signal by one listener, however many transfers share it", async () => {
    const provider = new ArrayProvider(1000, false);
    const disk = new StrategyDisk(provider);
    const warnings: string[] = [];
    const warned = (warning: Error): void => void warnings.push(warning.name);
    process.on("warning", warned);
    const { signal } = new AbortController();
    const reads = Array.from({ length: 500 }, () => disk.read(0, new Uint8Array(512), { signal }));
    provider.answer(500);
    await Promise.all(reads);
    await new Promise((resolve) => setImmediate(resolve));
    process.off("warning", warned);
    expect(warnings).toEqual([]);
  });
});

/** One more turn of the event loop. */
const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

const sector = (fill = 0): Uint8Array => new Uint8Array(512).fill(fill);

describe("a range command over a strategy", () => {
  const parts = ({ taken }: ArrayProvider): number[][] =>
    taken.map(({ position, length }) => [position / 512, length / 512]);

  it("is split by its own limit, at the device's alignment", async () => {
    const provider = new ArrayProvider(100, false);
    const disk = new StrategyDisk(provider);
    const discarding = disk.discard(5 * 512, 30 * 512);
    expect(parts(provider)).toEqual([
      [5, 3],
      [8, 8],
      [16, 8],
      [24, 8],
      [32, 3],
    ]);
    provider.answer(5);
    await discarding;
    const zeroing = disk.writeZeroes(5 * 512, 15 * 512);
    expect(parts(provider)).toEqual([
      [5, 7],
      [12, 7],
      [19, 1],
    ]);
    provider.answer(3);
    await zeroing;
    const erasing = disk.secureErase(0, 1 << 20);
    expect(parts(provider)).toEqual([[0, 2048]]);
    expect(provider.taken.every(({ data }) => data === null)).toBe(true);
    provider.answer(1);
    await erasing;
    expect(disk.statistics).toMatchObject({ deletes: 9, bytesDeleted: 45 * 512 + (1 << 20) });
  });

  it("is refused where the disk cannot, and where it is read-only", async () => {
    const provider = new ArrayProvider(1, true);
    provider.discard = null;
    const disk = new StrategyDisk(provider);
    expect(disk.can).toEqual({ discard: false, writeZeroes: true, secureErase: true });
    await expect(disk.discard(0, 512)).rejects.toMatchObject({
      code: "UNSUPPORTED",
      errno: "ENOTSUP",
    });
    const guarded = new StrategyDisk(
      Object.assign(new ArrayProvider(1, true), { readOnly: true }) as ArrayProvider,
    );
    for (const command of ["discard", "writeZeroes", "secureErase"] as const)
      await expect(guarded[command](0, 512)).rejects.toMatchObject({ errno: "EROFS" });
    await expect(guarded.writev(0, [sector()])).rejects.toMatchObject({ errno: "EROFS" });
  });
});

describe("an ordered request over a strategy", () => {
  it("starts when all before it is over, and nothing starts before it is over", async () => {
    const provider = new ArrayProvider(100, false);
    const disk = new StrategyDisk(provider);
    const work = [
      disk.write(0, sector(1)),
      disk.write(512, sector(2)),
      disk.write(1024, sector(3), { ordered: true }),
      disk.write(1536, sector(4)),
      disk.flush({ ordered: true }),
      disk.write(2048, sector(5)),
      disk.read(2048, sector()),
    ];
    const seen: number[][] = [];
    while (provider.taken.length > 0) {
      seen.push(provider.taken.map(({ position }) => position / 512));
      provider.answer(1);
    }
    await Promise.all(work);
    expect(seen).toEqual([[0, 1], [1], [2], [3], [0], [4, 4], [4]]);
  });

  it("is left to a device that keeps the order", async () => {
    const provider = new ArrayProvider(100, false);
    provider.barrier = true;
    const disk = new StrategyDisk(provider);
    const work = [0, 1, 2].map((i) => disk.write(i * 512, sector(i), { ordered: i === 1 }));
    expect(provider.taken.map(({ ordered }) => ordered)).toEqual([false, true, false]);
    provider.answer(3);
    await Promise.all(work);
  });

  it("goes on after one that failed", async () => {
    const provider = new ArrayProvider(100, false);
    const disk = new StrategyDisk(provider);
    const first = disk.write(0, sector(), { ordered: true }).catch(({ code }) => code);
    const second = disk.write(0, sector());
    provider.answer(1, new VirtioFault("IO", "bad sector"));
    expect(await first).toBe("IO");
    provider.answer(1);
    await second;
    expect(disk.statistics).toMatchObject({ writes: 2, errors: 1, bytesWritten: 512, busy: 0 });
  });
});

describe("the form without promises", () => {
  /** A bio to use again, and how often it was done. */
  function reusable(position = 0): Bio & { ends: (string | null)[] } {
    const ends: (string | null)[] = [];
    return {
      command: BioCommand.WRITE,
      position,
      length: 512,
      data: sector(9),
      ordered: false,
      done: (fault) => ends.push(fault?.code ?? null),
      ends,
    };
  }

  it("takes the caller's own bio again and again, and tells the device once a batch", () => {
    const provider = new ArrayProvider(2, false);
    const disk = new StrategyDisk(provider);
    const bio = reusable();
    for (let i = 0; i < 5; i++) {
      bio.position = i * 512;
      expect(disk.strategy(bio)).toBe(true);
      expect(provider.starts).toBe(i);
      disk.start();
      disk.start();
      provider.answer(1);
    }
    expect(bio.ends).toEqual(new Array(5).fill(null));
    expect(provider.bytes[4 * 512]).toBe(9);
    expect(disk.statistics).toMatchObject({ writes: 5, bytesWritten: 5 * 512, busy: 0 });
  });

  it("takes nothing when there is no room, and says when there is", () => {
    const provider = new ArrayProvider(1, false);
    const disk = new StrategyDisk(provider);
    let rooms = 0;
    disk.onRoom = () => {
      rooms += 1;
    };
    const [first, second] = [reusable(), reusable(512)];
    expect([disk.strategy(first), disk.strategy(second), rooms]).toEqual([true, false, 0]);
    disk.start();
    provider.answer(1);
    expect([rooms, disk.strategy(second)]).toEqual([1, true]);
    provider.answer(1);
    expect([first.ends, second.ends]).toEqual([[null], [null]]);
  });

  it("does not overtake transfers that wait", async () => {
    const provider = new ArrayProvider(1, false);
    const disk = new StrategyDisk(provider);
    const writes = [disk.write(0, sector()), disk.write(512, sector())];
    const late = reusable();
    expect(disk.strategy(late)).toBe(false);
    provider.answer(1);
    expect(disk.strategy(late)).toBe(false);
    provider.answer(1);
    expect(disk.strategy(late)).toBe(true);
    await Promise.all(writes);
  });

  it("starts by itself what was given from inside done", () => {
    const provider = new ArrayProvider(1, false);
    const disk = new StrategyDisk(provider);
    const bio = reusable();
    let left = 3;
    bio.done = () => {
      left -= 1;
      if (left > 0) expect(disk.strategy(bio)).toBe(true);
    };
    disk.strategy(bio);
    disk.start();
    for (let starts = 1; left > 0; starts++) {
      expect(provider.starts).toBe(starts);
      provider.answer(1);
    }
    expect(provider.starts).toBe(3);
  });

  it("takes an ordered bio only when nothing is under way, and nothing beside it", () => {
    const provider = new ArrayProvider(9, false);
    const disk = new StrategyDisk(provider);
    const [first, second] = [reusable(), reusable()];
    second.ordered = true;
    expect([disk.strategy(first), disk.strategy(second)]).toEqual([true, false]);
    provider.answer(1);
    expect([disk.strategy(second), disk.strategy(first)]).toEqual([true, false]);
    provider.answer(1);
    expect(disk.strategy(first)).toBe(true);
  });

  const wrong: readonly (readonly [string, Partial<Bio>, string])[] = [
    ["an odd position", { position: 100 }, "INVALID"],
    ["no position", { position: Number.NaN }, "INVALID"],
    ["a position below 0", { position: -512 }, "INVALID"],
    ["a position beyond the end", { position: 8 << 20 }, "INVALID"],
    ["an endless position", { position: Number.POSITIVE_INFINITY }, "INVALID"],
    ["no length", { length: 0, data: new Uint8Array(0) }, "INVALID"],
    ["no data", { data: null }, "INVALID"],
    ["other data than its length", { length: 1024 }, "INVALID"],
    ["more than the most", { length: 20 * 512, data: new Uint8Array(20 * 512) }, "INVALID"],
    ["a flush with data", { command: BioCommand.FLUSH }, "INVALID"],
    ["a discard with data", { command: BioCommand.DISCARD }, "INVALID"],
    [
      "a discard beyond its limit",
      { command: BioCommand.DISCARD, data: null, length: 11 * 512 },
      "INVALID",
    ],
  ];
  for (const [what, change, code] of wrong)
    it(`tells done what is wrong with ${what}, and the device nothing`, () => {
      const provider = new ArrayProvider(9, false);
      const bio = Object.assign(reusable(), change);
      const disk = new StrategyDisk(provider);
      expect(disk.strategy(bio)).toBe(true);
      expect(bio.ends).toEqual([code]);
      expect(provider.taken).toEqual([]);
      expect(disk.statistics).toMatchObject({ writes: 0, errors: 0, busy: 0 });
    });
});

describe("a disk over a strategy that is resized", () => {
  it("tells who listens, and refuses what waited and is now beyond the end", async () => {
    const provider = new ArrayProvider(1, false);
    const disk = new StrategyDisk(provider);
    const sizes: number[] = [];
    const stop = disk.onResize((size) => sizes.push(size));
    const first = disk.read(0, sector());
    const second = disk.read((8 << 20) - 512, sector());
    provider.bytes = new Uint8Array(4096);
    provider.events.resized();
    provider.answer(1);
    await first;
    await expect(second).rejects.toMatchObject({ code: "INVALID", errno: "EINVAL" });
    expect([disk.mediaSize, ...sizes]).toEqual([4096, 4096]);
    stop();
    provider.events.resized();
    expect(sizes).toHaveLength(1);
  });
});

describe("the statistics of a disk over a strategy", () => {
  it("count the time in which anything was under way, and what is", async () => {
    const provider = new ArrayProvider(9, false);
    const disk = new StrategyDisk(provider);
    provider.time = 1000;
    const work = [disk.read(0, sector()), disk.read(0, sector())];
    provider.time = 1007;
    expect(disk.statistics).toMatchObject({ busy: 2, busyTime: 7 });
    provider.answer(1);
    provider.time = 1010;
    provider.answer(1);
    provider.time = 2000;
    expect(disk.statistics).toMatchObject({ busy: 0, busyTime: 10, reads: 2, bytesRead: 1024 });
    await Promise.all(work);
  });

  it("count how long requests took by kind, those under way so far", async () => {
    const provider = new ArrayProvider(9, false);
    const disk = new StrategyDisk(provider);
    provider.time = 1000;
    const work = [
      disk.read(0, sector()),
      disk.read(0, sector()),
      disk.write(0, sector()),
      disk.flush(),
      disk.discard(0, 512),
    ];
    provider.time = 1004;
    provider.answer(1);
    provider.time = 1010;
    expect(disk.statistics).toMatchObject({ reads: 1, readTime: 14, writeTime: 10, busyTime: 10 });
    provider.answer(3);
    provider.time = 1100;
    provider.answer(1, new VirtioFault("IO", "bad sector"));
    await Promise.allSettled(work);
    const times = { readTime: 14, writeTime: 10, flushTime: 10, deleteTime: 100, busyTime: 100 };
    provider.time = 5000;
    expect(disk.statistics).toMatchObject(times);
  });

  it("read the clock once a batch of the form without promises", () => {
    const provider = new ArrayProvider(64, false);
    const disk = new StrategyDisk(provider);
    let looks = 0;
    provider.now = () => {
      looks += 1;
      return looks;
    };
    let rounds = 3;
    const bios = Array.from({ length: 64 }, (_, i): Bio => {
      const bio: Bio = {
        ...{ command: BioCommand.READ, position: i * 512, length: 512, data: sector() },
        ordered: false,
        done: () => void (rounds > 0 && disk.strategy(bio)),
      };
      return bio;
    });
    for (const bio of bios) disk.strategy(bio);
    disk.start();
    expect(looks).toBe(1);
    for (; rounds >= 0; rounds--) provider.answer(64);
    expect(looks).toBe(5);
    expect(disk.statistics).toMatchObject({ reads: 256, readTime: 256, busy: 0, busyTime: 4 });
  });
});

describe("an aborted request over a strategy", () => {
  type Options = Parameters<StrategyDisk["flush"]>[0];
  const part = (): Uint8Array => new Uint8Array(30 * 512);
  /** Of the caller's own memory. */
  const own = ({ bytes }: ArrayProvider): Uint8Array =>
    bytes.subarray(1 << 20, (1 << 20) + 30 * 512);
  type Request = (disk: StrategyDisk, provider: ArrayProvider, options: Options) => Promise<void>;
  /** Each is split: there is more than one part. */
  const bounced: readonly (readonly [string, Request])[] = [
    ["a read", (disk, _, options) => disk.read(0, part(), options)],
    ["a write", (disk, _, options) => disk.write(0, part(), options)],
    ["a readv", (disk, _, options) => disk.readv(0, [sector(), part()], options)],
    ["a writev", (disk, _, options) => disk.writev(0, [sector(), part()], options)],
    ["a discard", (disk, _, options) => disk.discard(0, 30 * 512, options)],
    ["a write of zeroes", (disk, _, options) => disk.writeZeroes(0, 30 * 512, options)],
    ["a flush", (disk, _, options) => disk.flush(options)],
  ];
  const inPlace: readonly (readonly [string, Request])[] = [
    ["a read", (disk, provider, options) => disk.read(0, own(provider), options)],
    ["a write", (disk, provider, options) => disk.write(0, own(provider), options)],
    [
      "a readv, bounced in part",
      (disk, provider, options) => disk.readv(0, [own(provider), part()], options),
    ],
    [
      "a writev, bounced in part",
      (disk, provider, options) => disk.writev(0, [own(provider), part()], options),
    ],
  ];
  /** A disk with room for some bios, the end of an aborted request, and its two hands. */
  function aborted(request: Request, room: number) {
    const provider = new ArrayProvider(room, false);
    const disk = new StrategyDisk(provider);
    const controller = new AbortController();
    const seen: string[] = [];
    request(disk, provider, { signal: controller.signal }).then(
      () => seen.push("done"),
      (error: Error) => seen.push(error.message),
    );
    return { provider, disk, seen, abort: () => controller.abort(new Error("enough")) };
  }

  it.each(bounced)("ends at once: %s that the device has", async (_, request) => {
    const { provider, disk, seen, abort } = aborted(request, 99);
    const { length } = provider.taken;
    abort();
    await turn();
    expect(seen).toEqual(["enough"]);
    // The device has them still, and nobody's bytes.
    expect([provider.taken.length, disk.statistics.busy]).toEqual([length, length]);
    expect(provider.taken.every(({ data }) => data === null)).toBe(true);
    provider.answer(length);
    await turn();
    expect([seen, disk.statistics.busy]).toEqual([["enough"], 0]);
  });

  it.each(bounced)("ends at once: %s of which the device has a part", async (_, request) => {
    const { provider, disk, seen, abort } = aborted(request, 1);
    abort();
    const next = disk.read(0, sector());
    await turn();
    expect([seen, provider.taken.length]).toEqual([["enough"], 1]);
    provider.answer(1);
    provider.answer(1);
    await next;
    expect([seen, provider.taken.length]).toEqual([["enough"], 0]);
  });

  it.each([...bounced, ...inPlace])("ends at once: %s that was not given", async (_, request) => {
    const { provider, seen, abort } = aborted(request, 0);
    abort();
    await turn();
    expect([seen, provider.taken]).toEqual([["enough"], []]);
  });

  it.each(inPlace)(
    "ends when the device gave back the caller's own memory: %s",
    async (_, request) => {
      const { provider, disk, seen, abort } = aborted(request, 99);
      const mine = ({ data }: Bio): boolean => data?.buffer === provider.bytes.buffer;
      const parts = provider.taken.filter(mine).length;
      abort();
      for (let part = 0; part < parts; part++) {
        await turn();
        expect(seen).toEqual([]);
        provider.answer(1);
      }
      await turn();
      // What was bounced may still be there.
      expect(seen).toEqual(["enough"]);
      provider.answer(99);
      expect(disk.statistics.busy).toBe(0);
    },
  );

  it("ends when the device was reset and holds the caller's own memory no more", async () => {
    const [[, read] = []] = inPlace;
    const { provider, seen, abort } = aborted(read as Request, 99);
    abort();
    await turn();
    expect(seen).toEqual([]);
    provider.answer(2, new VirtioFault("TIMED_OUT", "the device was reset"));
    await turn();
    expect(seen).toEqual(["enough"]);
  });

  it("ends when what the device has left of it is bounced", async () => {
    const { provider, seen, abort } = aborted(
      (disk, { bytes }, options) => disk.readv(0, [bytes.subarray(0, 512), sector()], options),
      99,
    );
    provider.answer(1);
    abort();
    await turn();
    expect(seen).toEqual(["enough"]);
  });

  it("writes nothing to the caller's bytes any more", async () => {
    const into = sector();
    const { provider, abort } = aborted((disk, _, options) => disk.read(0, into, options), 99);
    provider.bytes.fill(5);
    abort();
    provider.answer(1);
    await turn();
    expect(into.every((byte) => byte === 0)).toBe(true);
  });

  it("lets go on what an ordered one held up", async () => {
    const provider = new ArrayProvider(99, false);
    const disk = new StrategyDisk(provider);
    const controller = new AbortController();
    const { signal } = controller;
    const first = disk.read(0, sector());
    const ordered = disk.flush({ ordered: true, signal });
    const last = disk.read(512, sector());
    expect(provider.taken).toHaveLength(1);
    controller.abort(new Error("enough"));
    expect(provider.taken.map(({ position }) => position)).toEqual([0, 512]);
    provider.answer(2);
    await Promise.all([first, last]);
    await expect(ordered).rejects.toThrow("enough");
  });
});

describe("a dump over a strategy", () => {
  /** A provider that answers one bio at each poll. */
  class Polled extends ArrayProvider {
    fate: VirtioFault | null = null;
    poll = (): boolean => {
      const [bio] = this.taken.splice(0, 1);
      if (bio !== undefined && this.fate === null) this.bytes.set(bio.data ?? [], bio.position);
      if (bio !== undefined) this.events.done(bio, this.fate);
      return bio !== undefined;
    };
  }

  it("is written in parts when everything before is over, and what waited goes on", async () => {
    const provider = new Polled(1, false);
    const disk = new StrategyDisk(provider);
    const writes = [disk.write(0, sector(1)), disk.write(512, sector(2))];
    disk.dump(0, new Uint8Array(30 * 512).fill(3));
    expect([provider.bytes[0], provider.bytes[30 * 512 - 1]]).toEqual([3, 3]);
    expect(provider.taken.map(({ position }) => position)).toEqual([512]);
    provider.answer(1);
    await Promise.all(writes);
    expect(disk.statistics).toMatchObject({ writes: 4, busy: 0 });
  });

  it("fails as its request fails, or when nothing comes", async () => {
    const provider = new Polled(1, false);
    const disk = new StrategyDisk(provider);
    provider.fate = new VirtioFault("IO", "bad sector");
    expect(() => disk.dump(0, sector())).toThrow("bad sector");
    provider.poll = () => false;
    expect(() => disk.dump(0, sector())).toThrow("md0: no answer to a dump in 10000 polls");
  });

  it("is refused by a disk that cannot be polled", () => {
    const disk = new StrategyDisk(new ArrayProvider(1, false));
    expect(() => disk.dump(0, sector())).toThrow("md0: the disk takes no dump");
  });
});
