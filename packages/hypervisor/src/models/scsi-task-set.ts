// The tasks of one logical unit: when each may start, and how they end before their time (SAM-5, task set management).
import {
  ScsiAsc,
  type ScsiResponse,
  ScsiSenseKey,
  ScsiStatus,
  ScsiTaskAttribute,
} from "@virtio/core/scsi";
import {
  checkCondition,
  responded,
  type ScsiCommand,
  type ScsiOutcome,
  type ScsiReply,
} from "./scsi-command.js";
import type { ScsiSlot } from "./scsi-queue.js";

/** A command that a unit has: waiting for its turn, never to be answered, in the backend's hands, or over. */
export interface ScsiTask {
  /** `id` of the request, low and high word. */
  readonly idLow: number;
  readonly idHigh: number;
  readonly attribute: ScsiTaskAttribute;
  readonly command: ScsiCommand;
  /** Whether it ends at all; one that does not ends with an abort. */
  readonly answered: boolean;
  /** The chain it came in. */
  readonly slot: ScsiSlot;
  /** Gives the answer; called once. */
  readonly finish: (reply: ScsiReply) => void;
  state: "dormant" | "unanswered" | "busy" | "ended";
  /** Why it ends before its time. */
  verdict: ScsiResponse | null;
  /** How often the backend had been told to let go when it started. */
  cancels: number;
}

/** What a task set needs of its unit. */
export interface ScsiTaskServer {
  execute(command: ScsiCommand): ScsiOutcome;
  /** Ends what the backend would not end by itself. */
  cancel(): void;
  /** Counts work outside the machine. */
  outside<T>(work: Promise<T>): Promise<T>;
}

/** Somebody who waits for the end of tasks. */
interface TaskWait {
  readonly tasks: readonly ScsiTask[];
  readonly done: () => void;
}

/** Tasks in the order in which they came. */
export class ScsiTaskSet {
  readonly #server: ScsiTaskServer;
  readonly #tasks: ScsiTask[] = [];
  #dormant = 0;
  /** Tasks that are not SIMPLE. */
  #special = 0;
  #cancels = 0;
  /** Who waits for the end of tasks. */
  #waits: readonly TaskWait[] = [];

  constructor(server: ScsiTaskServer) {
    this.#server = server;
  }

  get size(): number {
    return this.#tasks.length;
  }

  get tasks(): readonly ScsiTask[] {
    return this.#tasks;
  }

  /** The task of this request. */
  find(idLow: number, idHigh: number): ScsiTask | undefined {
    return this.#tasks.find((task) => task.idLow === idLow && task.idHigh === idHigh);
  }

  /** A new task; starts it if it may. */
  add(task: ScsiTask): void {
    const plain = task.attribute === ScsiTaskAttribute.SIMPLE;
    this.#tasks.push(task);
    this.#dormant += 1;
    if (!plain) this.#special += 1;
    if (plain && this.#special === 0) this.#start(task);
    else this.#startAll();
  }

  /** Starts all that may start: HEAD at once, ORDERED alone, SIMPLE behind no HEAD and no ORDERED that came before. */
  #startAll(): void {
    let blocked = false;
    let first = true;
    const ready: ScsiTask[] = [];
    for (const task of this.#tasks) {
      const { attribute } = task;
      const held = attribute === ScsiTaskAttribute.ORDERED ? !first : blocked;
      const waits = task.state === "dormant" && task.verdict === null;
      if (waits && (attribute === ScsiTaskAttribute.HEAD || !held)) ready.push(task);
      first = false;
      blocked ||= attribute !== ScsiTaskAttribute.SIMPLE;
    }
    for (const task of ready) if (task.state === "dormant") this.#start(task);
  }

  #start(task: ScsiTask): void {
    this.#dormant -= 1;
    task.cancels = this.#cancels;
    task.state = "unanswered";
    if (!task.answered) return;
    const outcome = this.#server.execute(task.command);
    if (!(outcome instanceof Promise)) {
      this.#end(task, outcome);
      return;
    }
    task.state = "busy";
    void this.#server.outside(outcome).then((reply) => this.#end(task, this.#excused(task, reply)));
  }

  /** What failed only because the backend was to let go of another task can be tried again. */
  #excused(task: ScsiTask, reply: ScsiReply): ScsiReply {
    const failed = reply.status === ScsiStatus.CHECK_CONDITION;
    return failed && task.cancels !== this.#cancels
      ? checkCondition(ScsiSenseKey.ABORTED_COMMAND, ScsiAsc.NO_ADDITIONAL_SENSE)
      : reply;
  }

  #end(task: ScsiTask, reply: ScsiReply): void {
    const at = this.#tasks.indexOf(task);
    this.#tasks.splice(at, 1);
    if (task.state === "dormant") this.#dormant -= 1;
    if (task.attribute !== ScsiTaskAttribute.SIMPLE) this.#special -= 1;
    task.state = "ended";
    task.finish(task.verdict === null ? reply : responded(task.verdict));
    if (this.#waits.length > 0) this.#wake();
    if (this.#dormant > 0) this.#startAll();
  }

  /** Tells those whose tasks have all ended. */
  #wake(): void {
    const ended = ({ tasks }: TaskWait): boolean => tasks.every(({ state }) => state === "ended");
    const over = this.#waits.filter(ended);
    this.#waits = this.#waits.filter((wait) => !ended(wait));
    for (const { done } of over) done();
  }

  /**
   * Ends tasks of this set with this response, those that the backend works on when it is done with them.
   * @returns null when they are over
   */
  abort(selected: readonly ScsiTask[], verdict: ScsiResponse): Promise<void> | null {
    const all = [...selected];
    for (const task of all) task.verdict ??= verdict;
    for (const task of all)
      if (task.state === "dormant" || task.state === "unanswered")
        this.#end(task, responded(verdict));
    const tasks = all.filter(({ state }) => state === "busy");
    if (tasks.length === 0) return null;
    const over = new Promise<void>((done) => {
      this.#waits = [...this.#waits, { tasks, done }];
    });
    this.#cancels += 1;
    this.#server.cancel();
    return over;
  }
}
