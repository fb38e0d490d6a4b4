// One QEMU process with its two protocols, and the ways in which that ends.
import { VirtioFault } from "@virtio/core";
import type { Ended, QemuProcess } from "./process.js";
import { QmpClient } from "./qmp.js";
import { QtestClient } from "./qtest.js";

/** Milliseconds between `quit` and SIGKILL: QEMU writes its caches back in between. */
const QUIT_GRACE_MS = 10_000;

/** Milliseconds between the end of a socket and SIGKILL: a process that is ending closes them before it is gone. */
const END_GRACE_MS = 2_000;

const describe = (pid: number, { code, signal, stderr }: Ended): string => {
  const how = signal === null ? `exit status ${code}` : signal;
  const last = stderr.at(-1);
  return `QEMU (pid ${pid}) ended: ${how}${last === undefined ? "" : `: ${last}`}`;
};

/** What a {@link Connection} passes on. */
export interface ConnectionOptions {
  readonly onInterrupt: (line: number, level: "high" | "low") => void;
  /** Milliseconds until a reply is overdue. */
  readonly timeoutMs: number | undefined;
}

/** States: open, then lost (nothing more can be asked), then ended (the process is gone). */
export class Connection {
  readonly process: QemuProcess;
  readonly qtest: QtestClient;
  readonly qmp: QmpClient;
  /** Resolves when nothing more can be asked: CLOSED, or what ended it. */
  readonly lost: Promise<VirtioFault>;
  /** Resolves when the process is gone: null after `shutdown`, else what ended it. */
  readonly ended: Promise<VirtioFault | null>;
  #lose: (fault: VirtioFault) => void = () => {};
  #fault: VirtioFault | null = null;
  #ordered = false;

  constructor(process: QemuProcess, { onInterrupt, timeoutMs }: ConnectionOptions) {
    this.process = process;
    this.lost = new Promise((resolve) => {
      this.#lose = resolve;
    });
    const onFailure = (fault: VirtioFault): void => this.abandon(fault);
    // A socket that closed: the process is ending, and its exit status says more. If it is not, it is of no use any more.
    const onEnd = (): void => {
      if (this.#ordered) return;
      const late = setTimeout(() => process.kill(), END_GRACE_MS);
      void process.ended.then(() => clearTimeout(late));
    };
    const [qtest, qmp] = process.sockets;
    this.qtest = new QtestClient(qtest, { onInterrupt, onFailure, onEnd, timeoutMs });
    this.qmp = new QmpClient(qmp, { onFailure, onEnd, timeoutMs });
    this.ended = process.ended.then((ended) => {
      if (!this.#ordered) this.#fault ??= new VirtioFault("CLOSED", describe(process.pid, ended));
      this.#close();
      return this.#fault;
    });
  }

  /** Kills the process, with this as the cause. */
  abandon(fault: VirtioFault): void {
    if (this.#ordered) return;
    this.#fault ??= fault;
    this.process.kill();
    this.#close();
  }

  /** Lets QEMU write back and end; kills it when it takes too long. Resolves when the process is gone. */
  async shutdown(): Promise<void> {
    if (this.#fault === null && !this.#ordered) {
      this.#ordered = true;
      const closed = new VirtioFault("CLOSED", "the machine is closed");
      this.#lose(closed);
      this.qtest.close(closed);
      // QEMU may be gone before its answer; a QEMU that does not take the command is of no use.
      this.qmp.execute("quit").catch(() => this.process.kill());
      const late = setTimeout(() => this.process.kill(), QUIT_GRACE_MS);
      await this.ended;
      clearTimeout(late);
    }
    await this.ended;
  }

  #close(): void {
    const fault = this.#fault ?? new VirtioFault("CLOSED", "the machine is closed");
    this.#lose(fault);
    this.qtest.close(fault);
    this.qmp.close(fault);
  }
}
