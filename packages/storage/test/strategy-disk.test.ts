import { VirtioFault } from "@virtio/core";
import { describe, expect, it } from "vitest";
import { diskContract } from "../src/contract.js";
import { type Bio, BioCommand, type DiskProvider, StrategyDisk } from "../src/index.js";

/** A provider over an array that has room for `room` bios and answers when told. */
class ArrayProvider implements DiskProvider {
  readonly name = "md0";
  readonly ident = "";
  readonly sectorSize = 512;
  readonly readOnly = false;
  readonly maxTransfer = 10_000;
  readonly bytes = new Uint8Array(8 << 20);
  readonly taken: Bio[] = [];
  starts = 0;
  gone: VirtioFault | null = null;
  onRoom: (() => void) | null = null;
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

  strategy(bio: Bio): boolean {
    if (this.gone !== null) {
      bio.done(this.gone);
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
    for (const { command, position, data, done } of this.taken.splice(0, count)) {
      if (fault === null && command === BioCommand.READ)
        data?.set(this.bytes.subarray(position, position + data.length));
      if (fault === null && command === BioCommand.WRITE && data !== null)
        this.bytes.set(data, position);
      done(fault);
    }
    this.onRoom?.();
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
