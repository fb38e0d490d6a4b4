// tcpdump(1), of which there is -w: it captures behind the commands that follow.
import type { CapturedFrame, NetworkInterface } from "@virtio/core";
import { PcapngWriter } from "@virtio/packets";
import { type Command, getopt, noMore, UsageError } from "../command.js";
import type { HostFile } from "../host.js";
import type { Job } from "../jobs.js";

/** Bytes that may wait for the file; a frame for which there is no room is dropped and counted. */
const WAITING_MAX = 16 << 20;

/** What a capture is made with. */
interface CaptureOptions {
  readonly interface: NetworkInterface;
  readonly file: HostFile;
  /** Frames after which it ends. */
  readonly count: number;
  /** Milliseconds to add to the machine's time to have the time of day. */
  readonly epoch: number;
  /** It puts the interface out of promiscuous mode at its end. */
  readonly promiscuous: boolean;
  /** It ended: by itself, or by `stop`; with what went wrong. */
  readonly done: (capture: Capture, fault: unknown) => void;
}

/** One capture. Every block is written when it comes: the file is whole at any time. */
class Capture implements Job {
  readonly name = "tcpdump";
  captured = 0;
  dropped = 0;
  readonly #options: CaptureOptions;
  readonly #writer = new PcapngWriter();
  readonly #stopCapture: () => void;
  /** What was given to the file: writes, one after another. */
  #written: Promise<void> = Promise.resolve();
  #position = 0;
  #waiting = 0;
  /** The interface was detached. */
  #gone = false;
  #ending: Promise<void> | null = null;

  constructor(options: CaptureOptions) {
    this.#options = options;
    this.#write(this.#writer.header());
    this.#write(this.#writer.addInterface(options.interface.name));
    this.#stopCapture = options.interface.capture((frame) => this.#take(frame));
    void options.interface.closed.then(() => {
      this.#gone = true;
      return this.stop();
    });
  }

  stop(): Promise<void> {
    this.#ending ??= this.#end();
    return this.#ending;
  }

  #take(frame: CapturedFrame): void {
    if (this.#ending !== null) return;
    if (this.#waiting > WAITING_MAX) this.dropped += 1;
    else {
      this.#write(this.#writer.frame({ ...frame, time: frame.time + this.#options.epoch }));
      this.captured += 1;
    }
    if (this.captured === this.#options.count) void this.stop();
  }

  #write(block: Uint8Array): void {
    const position = this.#position;
    this.#position += block.length;
    this.#waiting += block.length;
    this.#written = this.#written.then(async () => {
      await this.#options.file.write(position, block);
      this.#waiting -= block.length;
    });
    // Said at the end, of which it is the cause.
    this.#written.catch(() => this.stop());
  }

  async #end(): Promise<void> {
    const { file, interface: what, promiscuous, done } = this.#options;
    this.#stopCapture();
    let fault: unknown = null;
    const attempt = async (work: () => Promise<void>): Promise<void> => {
      await work().catch((cause: unknown) => {
        fault ??= cause;
      });
    };
    await attempt(() => this.#written);
    await attempt(() => file.close());
    if (promiscuous && what.promiscuous && !this.#gone)
      await attempt(() => what.setPromiscuous(false));
    done(this, fault);
  }
}

/** tcpdump(1). Returns at once; the capture ends after `-c` frames, with `killall tcpdump`, or with the shell. */
export const tcpdump: Command = {
  name: "tcpdump",
  usage: "tcpdump [-p] [-c count] -i interface -w file",
  summary:
    "capture into a pcapng file, behind the commands that follow; ends after -c frames, with killall tcpdump, or with the shell",
  async run(args, { kernel, host, jobs, err }) {
    const { flags, values, operands } = getopt(args, "c:i:npUw:");
    noMore(operands);
    const [name, path, count] = [values.get("i"), values.get("w"), values.get("c")];
    if (path === undefined) throw new UsageError("there is no -w: packets are not printed here");
    if (count !== undefined && !/^[1-9]\d*$/.test(count))
      throw new UsageError(`invalid packet count ${count}`);
    const what = name === undefined ? kernel.interfaces[0] : kernel.interface(name);
    if (what === undefined) throw new UsageError("there is no interface");
    const promiscuous = !flags.has("p") && !what.promiscuous;
    if (promiscuous) await what.setPromiscuous(true);
    const file = await host.create(path);
    await file.truncate(0);
    const capture = new Capture({
      ...{ interface: what, file, promiscuous },
      count: count === undefined ? Number.POSITIVE_INFINITY : Number(count),
      epoch: host.time() - kernel.machine.tasks.now(),
      done: ({ captured, dropped }, fault) => {
        jobs.remove(capture);
        if (fault !== null) err(`tcpdump: ${fault instanceof Error ? fault.message : fault}\n`);
        err(`${captured} packets captured\n`);
        err(`${captured + dropped} packets received by filter\n`);
        err(`${dropped} packets dropped by kernel\n`);
      },
    });
    jobs.add(capture);
    err(
      `tcpdump: listening on ${what.name}, link-type EN10MB (Ethernet), capture size 262144 bytes\n`,
    );
    return 0;
  },
  complete: async (args, { kernel, host }) =>
    args.at(-2) === "-w" ? host.list(args.at(-1) ?? "") : kernel.interfaces.map(({ name }) => name),
};

/** killall(1), of what runs behind the commands. */
export const killall: Command = {
  name: "killall",
  usage: "killall procname",
  summary: "end what runs behind the commands: tcpdump",
  async run(args, { jobs, err }) {
    const { operands } = getopt(args, "");
    const [name, ...rest] = operands;
    if (name === undefined) throw new UsageError("");
    noMore(rest);
    if ((await jobs.stop(name)) > 0) return 0;
    err("No matching processes were found\n");
    return 1;
  },
  complete: async (_, { jobs }) => jobs.running.map(({ name }) => name),
};
