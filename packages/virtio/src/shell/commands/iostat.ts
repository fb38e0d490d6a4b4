import { type Disk, type DiskStatistics, type TaskQueue, VirtioFault } from "@virtio/core";
import { type Command, getopt, type Session, UsageError } from "../command.js";

/** Lines of the short form under one header. */
const HEADER_INTERVAL = 20;
/** Seconds: a day. Timers of JavaScript end at 24.8. */
const WAIT_MAX = 86400;

/** What a disk did within a time. */
interface Activity {
  readonly name: string;
  readonly reads: number;
  readonly writes: number;
  /** Of every kind. */
  readonly transfers: number;
  readonly bytesRead: number;
  readonly bytesWritten: number;
  /** Deleted ones too. */
  readonly bytes: number;
  /** Milliseconds that one request took: a read, a write, a flush, any. */
  readonly perRead: number;
  readonly perWrite: number;
  readonly perFlush: number;
  readonly perTransfer: number;
  /** Requests under way at its end. */
  readonly busy: number;
  /** Milliseconds. */
  readonly busyTime: number;
}

/** What `disk` did since `before`; since it attached when that is not given. */
function since({ name, statistics: now }: Disk, before: DiskStatistics | undefined): Activity {
  const more = (key: keyof DiskStatistics): number => now[key] - (before?.[key] ?? 0);
  const [reads, writes] = [more("reads"), more("writes")];
  const [bytesRead, bytesWritten] = [more("bytesRead"), more("bytesWritten")];
  const flushes = more("flushes");
  const transfers = reads + writes + flushes + more("deletes");
  const [readTime, writeTime, flushTime] = [more("readTime"), more("writeTime"), more("flushTime")];
  const each = (time: number, count: number): number => (count === 0 ? 0 : time / count);
  return {
    ...{ name, reads, writes, transfers, bytesRead, bytesWritten },
    bytes: bytesRead + bytesWritten + more("bytesDeleted"),
    perRead: each(readTime, reads),
    perWrite: each(writeTime, writes),
    perFlush: each(flushTime, flushes),
    perTransfer: each(readTime + writeTime + flushTime + more("deleteTime"), transfers),
    busy: now.busy,
    busyTime: more("busyTime"),
  };
}

/** A copy: the disk goes on counting in its own. */
function snapshot({ statistics }: Disk): DiskStatistics {
  const { reads, writes, flushes, deletes, errors, busy, busyTime } = statistics;
  const { bytesRead, bytesWritten, bytesDeleted } = statistics;
  const { readTime, writeTime, flushTime, deleteTime } = statistics;
  return {
    ...{ reads, writes, flushes, deletes, errors, busy, busyTime },
    ...{ bytesRead, bytesWritten, bytesDeleted },
    ...{ readTime, writeTime, flushTime, deleteTime },
  };
}

const right = (value: number, width: number, digits = 0): string =>
  value.toFixed(digits).padStart(width);

/** One disk of the extended form. */
function extended(activity: Activity, seconds: number): string {
  const { name, reads, writes, bytesRead, bytesWritten, busy, busyTime } = activity;
  const { perRead, perWrite, perFlush, perTransfer } = activity;
  const columns = [
    name.padEnd(8),
    right(reads / seconds, 7),
    right(writes / seconds, 7),
    right(bytesRead / 1024 / seconds, 8, 1),
    right(bytesWritten / 1024 / seconds, 8, 1),
    ...[perRead, perWrite, perFlush, perTransfer].map((ms) => right(ms, 5)),
    right(busy, 4),
    right(busyTime / 10 / seconds, 3),
  ];
  return `${columns.join(" ")}\n`;
}

/** One disk of the short form: KB/t, tps, MB/s. */
function short({ transfers, bytes }: Activity, seconds: number): string {
  const each = transfers === 0 ? 0 : bytes / 1024 / transfers;
  const rate = bytes / 2 ** 20 / seconds;
  const digits = rate >= 1000 ? 0 : rate >= 100 ? 1 : 2;
  return `${right(each, 4, each >= 100 ? 0 : 1)} ${right(transfers / seconds, 5)} ${right(rate, 5, digits)} `;
}

const HEADER = `                        extended device statistics
device       r/s     w/s     kr/s     kw/s  ms/r  ms/w  ms/o  ms/t qlen  %b
`;

const shortHeader = (disks: readonly Disk[]): string =>
  `${disks.map(({ name }) => `${name.padStart(16)} `).join("")}\n${"KB/t   tps  MB/s ".repeat(disks.length)}\n`;

/** Resolves after `ms` milliseconds. @throws the signal's reason */
async function pause(ms: number, tasks: TaskQueue, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted();
  await new Promise<void>((resolve, reject) => {
    const abort = (): void => {
      callout.stop();
      reject(signal.reason);
    };
    const callout = tasks.callout(ms, () => {
      signal.removeEventListener("abort", abort);
      resolve();
    });
    signal.addEventListener("abort", abort, { once: true });
  });
}

/** The disks of these names; every one when there is none. @throws VirtioFault NOT_FOUND */
function selected(names: readonly string[], { kernel }: Session): readonly Disk[] {
  const disks = names.length === 0 ? kernel.disks : names.map((name) => kernel.disk(name));
  if (disks.length === 0) throw new VirtioFault("NOT_FOUND", "there is no disk");
  return disks;
}

/** How often to print, and how many milliseconds apart. */
function schedule(values: ReadonlyMap<string, string>): readonly [count: number, wait: number] {
  const [wait, count] = [values.get("w"), values.get("c")];
  if (wait !== undefined && !/^\d+(\.\d+)?$/.test(wait))
    throw new UsageError("wait time is not a number");
  if (Number(wait ?? "1") < 0.001) throw new UsageError("wait time is < 1ms");
  if (Number(wait ?? "1") > WAIT_MAX) throw new UsageError(`wait time is > ${WAIT_MAX}s`);
  if (count !== undefined && !/^[1-9]\d*$/.test(count)) throw new UsageError("count is < 1");
  const forever = wait === undefined ? 1 : Number.POSITIVE_INFINITY;
  return [count === undefined ? forever : Number(count), Number(wait ?? "1") * 1000];
}

/** iostat(8) of disks: there is no terminal and no CPU time to tell of, as with -d. */
export const iostat: Command = {
  name: "iostat",
  usage: "iostat [-dx] [-c count] [-w wait] [disk ...]",
  summary: "print what disks do: since boot, then every -w seconds, -c times; -x in full",
  async run(args, session) {
    const { kernel, out, signal } = session;
    const { flags, values, operands } = getopt(args, "c:dw:x");
    const [count, wait] = schedule(values);
    const { tasks } = kernel.machine;
    let before = new Map<Disk, DiskStatistics>();
    // The first line is about the time since boot.
    let then = tasks.now() - kernel.uptime * 1000;
    let header = "";
    for (let line = 0; line < count; line++) {
      if (line > 0) await pause(wait, tasks, signal);
      const disks = selected(operands, session);
      const now = tasks.now();
      const seconds = now > then ? (now - then) / 1000 : 1;
      const activities = disks.map((disk) => since(disk, before.get(disk)));
      if (flags.has("x"))
        out(HEADER + activities.map((activity) => extended(activity, seconds)).join(""));
      else {
        const wanted = shortHeader(disks);
        if (wanted !== header || line % HEADER_INTERVAL === 0) out(wanted);
        header = wanted;
        out(`${activities.map((activity) => short(activity, seconds)).join("")}\n`);
      }
      before = new Map(disks.map((disk) => [disk, snapshot(disk)]));
      then = now;
    }
    return 0;
  },
  complete: async (_, { kernel }) => kernel.disks.map(({ name }) => name),
};
