// ping(8) and ping6(8): both take either kind of address, and differ in what they print.
import { VirtioFault } from "@virtio/core";
import { echo, type Headers, parseEcho } from "@virtio/packets";
import { pause } from "../../bounded.js";
import { isInet6, isLinkLocal, parseZoned } from "../../net/interface-address.js";
import type { Station } from "../../net/station.js";
import { type Command, getopt, type Session, UsageError } from "../command.js";

/** Milliseconds to wait for the answer to the last request. */
const LAST_WAIT = 10_000;
/** Shortest time between two requests, in seconds. */
const INTERVAL_MIN = 0.01;
/** Largest payload that is no fragment of a jumbo frame. */
const SIZE_MAX = 9216;
/** Bytes of the headers of an echo message, and of IP. */
const ECHO_HEADER = 8;
const IPV4_HEADER = 20;
const IPV6_HEADER = 40;

interface Plan {
  readonly count: number;
  /** Milliseconds. */
  readonly interval: number;
  readonly size: number;
  /** Milliseconds for all of it; null: no limit. */
  readonly timeout: number | null;
  /** Milliseconds for the last answer. */
  readonly wait: number;
}

function planOf(values: ReadonlyMap<string, string>, size: number): Plan {
  const number = (letter: string, min: number, max: number): number | null => {
    const text = values.get(letter);
    if (text === undefined) return null;
    const value = /^\d+(\.\d+)?$/.test(text) ? Number(text) : Number.NaN;
    if (value >= min && value <= max) return value;
    throw new UsageError(`-${letter} ${text}: not a number from ${min} to ${max}`);
  };
  const seconds = number("t", 1, 1_000_000);
  return {
    count: Math.floor(number("c", 1, 2 ** 31) ?? Number.POSITIVE_INFINITY),
    interval: 1000 * (number("i", INTERVAL_MIN, 86_400) ?? 1),
    size: Math.floor(number("s", 0, SIZE_MAX) ?? size),
    timeout: seconds === null ? null : 1000 * seconds,
    wait: number("W", 1, 86_400_000) ?? LAST_WAIT,
  };
}

/** What came back. */
interface Reply {
  readonly sequence: number;
  readonly bytes: number;
  readonly hops: number;
  /** Milliseconds. */
  readonly time: number;
  readonly duplicate: boolean;
}

/** One run: requests on their way, and times of those that came back. */
class Run {
  readonly times: number[] = [];
  sent = 0;
  readonly #station: Station;
  readonly #id = Math.floor(Math.random() * 65536);
  readonly #path: { readonly source: string; readonly destination: string };
  readonly #data: Uint8Array;
  /** When each was sent, by sequence number; of the last 65536. */
  readonly #sentAt = new Map<number, number>();
  readonly #answered = new Set<number>();

  constructor(station: Station, path: Run["path"], size: number) {
    this.#station = station;
    this.#path = path;
    this.#data = Uint8Array.from({ length: size }, (_, at) => at);
  }

  get path(): { readonly source: string; readonly destination: string } {
    return this.#path;
  }

  get answered(): boolean {
    return this.#answered.has((this.sent - 1) & 0xffff);
  }

  async send(signal: AbortSignal): Promise<void> {
    const sequence = this.sent & 0xffff;
    this.sent += 1;
    this.#answered.delete(sequence);
    this.#sentAt.set(sequence, this.#station.tasks.now());
    const message = { type: "request", id: this.#id, sequence, data: this.#data } as const;
    await this.#station.sendIp(echo(this.#path, message), this.#path.destination, signal);
  }

  reply(frame: Uint8Array, headers: Headers): Reply | null {
    const answer = parseEcho(frame, headers);
    if (answer?.type !== "reply" || answer.id !== this.#id) return null;
    const sentAt = this.#sentAt.get(answer.sequence);
    if (sentAt === undefined) return null;
    const { sequence } = answer;
    const duplicate = this.#answered.has(sequence);
    this.#answered.add(sequence);
    const time = this.#station.tasks.now() - sentAt;
    if (!duplicate) this.times.push(time);
    const hops = frame[headers.l3 + (headers.ip === 4 ? 8 : 7)] ?? 0;
    return { sequence, bytes: answer.data.length + ECHO_HEADER, hops, time, duplicate };
  }
}

function statistics(run: Run, name: string, target: string): string {
  const { sent, times } = run;
  const loss = sent === 0 ? 0 : ((sent - times.length) * 100) / sent;
  const lines = [
    `\n--- ${target} ${name} statistics ---`,
    `${sent} packets transmitted, ${times.length} packets received, ${loss.toFixed(1)}% packet loss`,
  ];
  if (times.length > 0) {
    const average = times.reduce((sum, time) => sum + time, 0) / times.length;
    const variance = times.reduce((sum, time) => sum + (time - average) ** 2, 0) / times.length;
    const all = [Math.min(...times), average, Math.max(...times), Math.sqrt(variance)];
    const deviation = name === "ping" ? "stddev" : "std-dev";
    const values = all.map((time) => time.toFixed(3)).join("/");
    lines.push(`round-trip min/avg/max/${deviation} = ${values} ms`);
  }
  return `${lines.join("\n")}\n`;
}

/** Sends and waits, until all is done. @throws the signal's reason: the time is over, or Ctrl-C came */
async function exchange(
  run: Run,
  plan: Plan,
  station: Station,
  signal: AbortSignal,
): Promise<void> {
  while (run.sent < plan.count) {
    if (run.sent > 0) await pause(station.tasks, plan.interval, signal);
    await run.send(signal);
  }
  if (run.answered) return;
  // Its listener has been told before this one is.
  await station.first(() => (run.answered ? true : null), plan.wait, signal);
}

async function ping(
  name: "ping" | "ping6",
  args: readonly string[],
  { net, out, signal }: Session,
): Promise<number> {
  const { values, operands } = getopt(args, "c:i:s:t:W:no");
  const [target, extra] = operands;
  if (target === undefined || extra !== undefined) throw new UsageError("");
  const { address, zone } = parseZoned(target);
  const v6 = isInet6(address);
  const plan = planOf(values, name === "ping" ? 56 : 8);
  const { station, source } = net.routeTo(address, zone);
  const headers = ECHO_HEADER + (v6 ? IPV6_HEADER : IPV4_HEADER);
  if (plan.size + headers > station.interface.mtu)
    throw new VirtioFault("INVALID", `sendto: Message too long (mtu ${station.interface.mtu})`);
  const scoped = (text: string): string =>
    isLinkLocal(text) ? `${text}%${station.interface.name}` : text;
  const label = scoped(address);
  const run = new Run(station, { source, destination: address }, plan.size);
  out(
    v6
      ? `PING6(${plan.size + headers}=40+8+${plan.size} bytes) ${scoped(source)} --> ${label}\n`
      : `PING ${label} (${label}): ${plan.size} data bytes\n`,
  );
  const stop = station.listen((frame, found) => {
    const reply = run.reply(frame, found);
    if (reply === null) return;
    const { bytes, sequence, hops, time, duplicate } = reply;
    const line = v6
      ? `${bytes} bytes from ${label}, icmp_seq=${sequence} hlim=${hops} time=${time.toFixed(3)} ms`
      : `${bytes} bytes from ${label}: icmp_seq=${sequence} ttl=${hops} time=${time.toFixed(3)} ms`;
    out(`${line}${duplicate ? " (DUP!)" : ""}\n`);
  });
  const over = new AbortController();
  const limit =
    plan.timeout === null ? null : station.tasks.callout(plan.timeout, () => over.abort());
  const end = AbortSignal.any([signal, over.signal]);
  try {
    await exchange(run, plan, station, end);
  } catch (error) {
    if (!end.aborted) throw error;
  } finally {
    limit?.stop();
    stop();
    out(statistics(run, v6 ? "ping6" : "ping", label));
  }
  return run.times.length > 0 ? 0 : 2;
}

const usage = "[-c count] [-i wait] [-s packetsize] [-t timeout] [-W waittime] host";

/** ping(8). */
export const pingCommand: Command = {
  name: "ping",
  usage: `ping ${usage}`,
  summary: "send ICMP echo requests to an address; -c so many, else until Ctrl-C",
  run: (args, session) => ping("ping", args, session),
};

/** ping6(8). */
export const ping6Command: Command = {
  name: "ping6",
  usage: `ping6 ${usage}`,
  summary: "send ICMPv6 echo requests to an address, fe80::2%vtnet0",
  run: (args, session) => ping("ping6", args, session),
};
