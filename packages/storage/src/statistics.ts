// What a disk has done (devstat(9)).
import type { DiskStatistics } from "@virtio/core";
import { type Bio, BioCommand } from "./bio.js";

/** Bios of one kind: devstat's read, write, no data, free. */
class Kind {
  begun = 0;
  over = 0;
  bytes = 0;
  /** Milliseconds, all bios added up. */
  duration = 0;

  /** So much time has passed. */
  count(ms: number): void {
    this.duration += (this.begun - this.over) * ms;
  }
}

/**
 * Counts bios. The clock is read once a batch, when its first bio is begun or over: a read costs a twentieth of a 4 KiB request.
 * Durations need no stamp in each bio: their sum is the number under way, over time.
 */
export class Counters {
  /** Bios under way. */
  busy = 0;
  readonly #now: () => number;
  readonly #reads = new Kind();
  readonly #writes = new Kind();
  readonly #flushes = new Kind();
  readonly #deletes = new Kind();
  /** What is done to zones is told of nowhere. */
  readonly #zones = new Kind();
  #errors = 0;
  #busyTime = 0;
  /** Up to when times are counted. */
  #then = 0;
  /** Times are counted up to this batch. */
  #counted = false;

  constructor(now: () => number) {
    this.#now = now;
  }

  /** As they are now. */
  read(): DiskStatistics {
    this.#count();
    const reads = this.#reads;
    const writes = this.#writes;
    const flushes = this.#flushes;
    const deletes = this.#deletes;
    return {
      reads: reads.over,
      writes: writes.over,
      flushes: flushes.over,
      deletes: deletes.over,
      bytesRead: reads.bytes,
      bytesWritten: writes.bytes,
      bytesDeleted: deletes.bytes,
      errors: this.#errors,
      busy: this.busy,
      busyTime: this.#busyTime,
      readTime: reads.duration,
      writeTime: writes.duration,
      flushTime: flushes.duration,
      deleteTime: deletes.duration,
    };
  }

  /** One bio is to be given. */
  begin({ command }: Bio): void {
    if (!this.#counted) this.#begin();
    this.busy += 1;
    this.#kind(command).begun += 1;
  }

  /** It was not taken. */
  retract({ command }: Bio): void {
    this.busy -= 1;
    this.#kind(command).begun -= 1;
  }

  /** One bio is over; what failed moved no bytes. */
  over({ command, length }: Bio, failed: boolean): void {
    if (!this.#counted) this.#begin();
    this.busy -= 1;
    const kind = this.#kind(command);
    kind.over += 1;
    if (failed) this.#errors += 1;
    else kind.bytes += length;
  }

  /** The batch is over: the next that begins or is over does so later. */
  batched(): void {
    this.#counted = false;
  }

  #kind(command: BioCommand): Kind {
    if (command === BioCommand.READ) return this.#reads;
    if (command === BioCommand.WRITE || command === BioCommand.ZONE_APPEND) return this.#writes;
    if (command === BioCommand.FLUSH) return this.#flushes;
    return command < BioCommand.ZONE_REPORT ? this.#deletes : this.#zones;
  }

  #begin(): void {
    this.#counted = true;
    this.#count();
  }

  /** Up to now. */
  #count(): void {
    const now = this.#now();
    const passed = now - this.#then;
    this.#then = now;
    if (this.busy === 0) return;
    this.#busyTime += passed;
    this.#reads.count(passed);
    this.#writes.count(passed);
    this.#flushes.count(passed);
    this.#deletes.count(passed);
  }
}
