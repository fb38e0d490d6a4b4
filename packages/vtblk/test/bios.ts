// Bios of a test, each end of each of them counted: a promise would not show a second one.
import { type Bio, BioCommand, type StrategyDisk } from "@virtio/storage";

/** A request of a test. */
export interface Request {
  readonly command: BioCommand;
  readonly position: number;
  /** Absent: a flush. */
  readonly data?: Uint8Array;
}

export const read = (position: number, data: Uint8Array): Request => ({
  command: BioCommand.READ,
  position,
  data,
});
export const write = (position: number, data: Uint8Array): Request => ({
  command: BioCommand.WRITE,
  position,
  data,
});
export const flush: Request = { command: BioCommand.FLUSH, position: 0 };

/** Gives the disk all of them at once. */
export class Load {
  /** By request, its ends so far: `done`, or code and errno. */
  readonly ends: readonly string[][];
  /** Requests in the order of their first ends. */
  readonly order: number[] = [];
  /** Each has ended. */
  readonly over: Promise<void>;

  constructor(disk: StrategyDisk, requests: readonly Request[]) {
    this.ends = requests.map(() => []);
    this.over = new Promise((resolve) => {
      const waiting = requests.map(
        ({ command, position, data }, n): Bio => ({
          command,
          position,
          length: data?.length ?? 0,
          data: data ?? null,
          ordered: false,
          done: (fault) => {
            const ends = this.ends[n] as string[];
            if (ends.length === 0) this.order.push(n);
            ends.push(fault === null ? "done" : `${fault.code} ${fault.errno}`);
            if (this.order.length === requests.length) resolve();
          },
        }),
      );
      const give = (): void => {
        for (let bio = waiting[0]; bio !== undefined && disk.strategy(bio); bio = waiting[0])
          waiting.shift();
        disk.start();
      };
      disk.onRoom = give;
      give();
    });
  }
}

/** Turns in which a second end would come. */
export async function turns(): Promise<void> {
  for (let n = 0; n < 20; n++) await new Promise((resolve) => setImmediate(resolve));
}
