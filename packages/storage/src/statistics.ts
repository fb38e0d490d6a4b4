// What a disk has done (devstat(9)).
import type { DiskStatistics } from "@virtio/core";
import { type Bio, BioCommand } from "./bio.js";

/** Counts bios; the clock is read only when the disk becomes busy and when it becomes idle. */
export class Counters {
  reads = 0;
  writes = 0;
  flushes = 0;
  deletes = 0;
  bytesRead = 0;
  bytesWritten = 0;
  bytesDeleted = 0;
  errors = 0;
  busy = 0;
  readonly #now: () => number;
  /** Up to when the disk was last idle. */
  #busyTime = 0;
  /** Since when it is busy; negative: it is idle. */
  #since = -1;

  constructor(now: () => number) {
    this.#now = now;
  }

  /** As they are now. */
  read(): DiskStatistics {
    const { reads, writes, flushes, deletes, bytesRead, bytesWritten, bytesDeleted } = this;
    const { errors, busy } = this;
    const busyTime = this.#busyTime + (this.#since < 0 ? 0 : this.#now() - this.#since);
    const bytes = { bytesRead, bytesWritten, bytesDeleted };
    return { reads, writes, flushes, deletes, ...bytes, errors, busy, busyTime };
  }

  /** After bios were begun or over. */
  stamp(): void {
    if (this.busy > 0 === this.#since >= 0) return;
    const now = this.#now();
    if (this.#since >= 0) {
      this.#busyTime += now - this.#since;
      this.#since = -1;
    } else this.#since = now;
  }

  /** One bio is over; what failed moved no bytes. */
  over({ command, length }: Bio, failed: boolean): void {
    this.busy -= 1;
    if (failed) this.errors += 1;
    const bytes = failed ? 0 : length;
    if (command === BioCommand.READ) {
      this.reads += 1;
      this.bytesRead += bytes;
    } else if (command === BioCommand.WRITE) {
      this.writes += 1;
      this.bytesWritten += bytes;
    } else if (command === BioCommand.FLUSH) this.flushes += 1;
    else {
      this.deletes += 1;
      this.bytesDeleted += bytes;
    }
  }
}
