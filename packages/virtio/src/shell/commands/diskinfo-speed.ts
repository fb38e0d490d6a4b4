// The test of diskinfo(8) -t: how long a disk takes to find a sector, and how fast it reads.
import { type Disk, type TaskQueue, VirtioFault } from "@virtio/core";

/** What a test works with. */
export interface SpeedOptions {
  readonly tasks: TaskQueue;
  /** Takes each line when it was measured. */
  readonly out: (text: string) => void;
  readonly signal: AbortSignal;
}

const MEGABYTE = 1 << 20;
/** Most megabytes of one transfer rate. */
const BULK_MAX = 100;
/** Sectors that a disk must have, and as many of a sequential test. */
const SEQUENCE = 2048;
/** Farthest step, in sectors. */
const STEP_MAX = 16384;
/** Milliseconds after which a measurement ends with what it did: the ten of a slow disk take two seconds. */
const BUDGET = 200;

/** Where the i-th read is, in bytes. */
type Place = (i: number) => number;

/**
 * Reads one sector, then a megabyte, at a time, as diskinfo(8) does; each measurement stops early when its time is over.
 * @throws VirtioFault INVALID when the disk has less than 2048 sectors or 1 MB; what a read throws, or the signal's reason
 */
export async function speedTest(disk: Disk, { tasks, out, signal }: SpeedOptions): Promise<void> {
  const { sectorSize, mediaSize } = disk;
  const sectors = Math.floor(mediaSize / sectorSize);
  if (mediaSize < MEGABYTE || sectors < SEQUENCE)
    throw new VirtioFault("INVALID", "disk too small for test", { device: disk.name });

  const into = new Uint8Array(Math.max(MEGABYTE, sectorSize));
  /** Up to `times` reads of `length` bytes. @returns how many, and the seconds they took */
  const measure = async (
    times: number,
    length: number,
    place: Place,
  ): Promise<readonly [count: number, seconds: number]> => {
    const part = into.subarray(0, length);
    const started = tasks.now();
    let count = 0;
    while (count < times && tasks.now() - started < BUDGET) {
      await disk.read(place(count), part, { signal });
      count++;
    }
    return [count, Math.max(1e-6, (tasks.now() - started) / 1000)];
  };
  const seek = async (name: string, times: number, sector: Place): Promise<void> => {
    const [count, seconds] = await measure(times, sectorSize, (i) => sector(i) * sectorSize);
    const each = ((seconds * 1000) / count).toFixed(3).padStart(8);
    const total = `${String(count).padStart(5)} iter in ${seconds.toFixed(6).padStart(10)} sec`;
    out(`\t${name}:\t${total} = ${each} msec\n`);
  };
  /** From `first` on by steps, and back to `second` in between. */
  const stroke =
    (first: number, second: number, forth: number, back: number): Place =>
    (i) =>
      i % 2 === 0 ? first + (i / 2) * forth : second + ((i - 1) / 2) * back;

  // 400 steps stay within half of the disk.
  const step = Math.min(STEP_MAX, 2 ** Math.floor(Math.log2(sectors / 800)));
  const [quarter, half] = [Math.floor(sectors / 4), Math.floor(sectors / 2)];
  out("Seek times:\n");
  await seek("Full stroke", 250, stroke(0, sectors - step, step, -step));
  await seek("Half stroke", 250, stroke(quarter, quarter + half, step, step));
  await seek("Quarter stroke", 500, stroke(quarter, quarter + quarter, step, step));
  await seek("Short forward", 400, (i) => half + i * step);
  await seek("Short backward", 400, (i) => half - i * step);
  await seek("Seq outer", SEQUENCE, (i) => i);
  await seek("Seq inner", SEQUENCE, (i) => sectors - SEQUENCE + i);

  const bulk = Math.min(BULK_MAX, Math.floor(mediaSize / MEGABYTE));
  const rate = async (name: string, start: number): Promise<void> => {
    const [count, seconds] = await measure(bulk, MEGABYTE, (i) => start + i * MEGABYTE);
    const total = `${String(count * 1024).padStart(8)} kbytes in ${seconds.toFixed(6).padStart(10)} sec`;
    const each = ((count * 1024) / seconds).toFixed(0).padStart(8);
    out(`\t${`${name}:`.padEnd(13)}${total} = ${each} kbytes/sec\n`);
  };
  const rest = sectors - (bulk * MEGABYTE) / sectorSize;
  out("\nTransfer rates:\n");
  await rate("outside", 0);
  await rate("middle", Math.floor(rest / 2) * sectorSize);
  await rate("inside", rest * sectorSize);
  out("\n");
}
