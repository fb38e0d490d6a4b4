// npm run bench -- net: vtnet and the network device model on the embedded machine.
import { PerformanceObserver, performance } from "node:perf_hooks";
import { setImmediate as turn } from "node:timers/promises";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import {
  type Frame,
  InterfaceCapability,
  type Machine,
  type NetworkInterface,
  type TaskQueue,
} from "@virtio/core";
import { NetHeaderFlag } from "@virtio/core/net";
import { embedded, LoopbackBackend, type NetBackend, Wire } from "@virtio/hypervisor";
import {
  complete,
  ETHERNET_HEADER_SIZE,
  EtherType,
  IPV4_HEADER_SIZE,
  IpProtocol,
  pseudoSum4,
  put16,
  put32,
  sum,
  TCP_HEADER_SIZE,
  TcpFlag,
} from "@virtio/packets";
import { attach, probe } from "@virtio/pci-transport";
import { vtnet } from "@virtio/vtnet";
import type { Row } from "./ring.js";

/** Milliseconds of a round. */
const ROUND = 400;
/** Frames of a burst. */
const BATCH = 32;
/** Frames under way in the forwarding load. */
const WINDOW = 4 * BATCH;
/** Different frames, each a flow of its own. */
const FLOWS = 256;
/** Seconds in which code is compiled, before times are taken. */
const WARM_UP = 0.5;
/** Frames that are passed while garbage collections are counted. */
const GC_FRAMES = 10_000_000;
/** Longest that they may take. */
const GC_MS = 60_000;

const L4 = ETHERNET_HEADER_SIZE + IPV4_HEADER_SIZE;

/** Ethernet and IPv4 headers of a frame with `length` bytes in all. */
function writeHeaders(
  bytes: Uint8Array,
  at: number,
  length: number,
  protocol: IpProtocol,
  flow: number,
): void {
  bytes.set([0x52, 0x54, 0, 0, 0, 1, 0x52, 0x54, 0, 0, 0, 2], at);
  put16(bytes, at + 12, EtherType.IPV4);
  const ip = at + ETHERNET_HEADER_SIZE;
  bytes[ip] = 0x45;
  put16(bytes, ip + 2, length - ETHERNET_HEADER_SIZE);
  bytes[ip + 8] = 64;
  bytes[ip + 9] = protocol;
  put32(bytes, ip + 12, 0x0a00_0001);
  put32(bytes, ip + 16, 0x0a00_0002);
  put16(bytes, ip + 10, 0);
  put16(bytes, ip + 10, complete(sum(bytes, ip, ip + IPV4_HEADER_SIZE)));
  put16(bytes, at + L4, 1024 + flow);
  put16(bytes, at + L4 + 2, 9);
}

/** `FLOWS` UDP frames of one size, `stride` bytes apart. The checksum is 0: none. */
function udpFrames(size: number, stride: number): Uint8Array {
  const bytes = new Uint8Array(FLOWS * stride);
  for (let flow = 0; flow < FLOWS; flow++) {
    writeHeaders(bytes, flow * stride, size, IpProtocol.UDP, flow);
    put16(bytes, flow * stride + L4 + 4, size - L4);
  }
  return bytes;
}

/** Bytes, and the same as words. */
class Store {
  readonly bytes: Uint8Array;
  readonly words: Int32Array;
  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
    this.words = new Int32Array(bytes.buffer, bytes.byteOffset, bytes.length >>> 2);
  }
}

/** Copies one frame between places of words, in the way that is cheapest for its size. */
function copyFrame(from: Store, at: number, into: Store, to: number, length: number): void {
  if (length > 256) into.bytes.set(from.bytes.subarray(at, at + length), to);
  else copyWords(from.words, at >>> 2, into.words, to >>> 2, (length + 3) >>> 2);
}

/** Four at a time: a loop's own work is as much as a word's. */
function copyWords(
  from: Int32Array,
  at: number,
  into: Int32Array,
  to: number,
  count: number,
): void {
  let w = 0;
  for (; w + 3 < count; w += 4) {
    const first = from[at + w] as number;
    const second = from[at + w + 1] as number;
    const third = from[at + w + 2] as number;
    const fourth = from[at + w + 3] as number;
    into[to + w] = first;
    into[to + w + 1] = second;
    into[to + w + 2] = third;
    into[to + w + 3] = fourth;
  }
  for (; w < count; w++) into[to + w] = from[at + w] as number;
}

/** A wire that gives the device frames, and as many again as come back: so many are under way. */
class Generator implements NetBackend {
  readonly maxFrame: number;
  readonly linkUp = true;
  onLinkChange: (() => void) | null = null;
  deliver: NetBackend["deliver"] = null;
  onReady: (() => void) | null = null;
  /** Frames that came back. */
  returned = 0;
  /** Frames that may still be given. */
  credit = 0;
  readonly #size: number;
  readonly #stride: number;
  readonly #frames: Uint8Array;
  #next = 0;
  #tasks: TaskQueue | null = null;
  #pushing = false;
  readonly #push = (): void => {
    this.#pushing = false;
    for (let n = 0; n < BATCH && this.credit > 0; n++) {
      if (this.deliver?.(this.#frames, this.#next * this.#stride, this.#size) !== true) return;
      this.credit -= 1;
      this.#next = (this.#next + 1) % FLOWS;
    }
    if (this.credit > 0) this.push();
  };

  constructor(size: number) {
    this.#size = size;
    this.maxFrame = 14 + 4 + 9216;
    this.#stride = (size + 63) & ~63;
    this.#frames = udpFrames(size, this.#stride);
  }

  connect(tasks: TaskQueue): void {
    this.#tasks = tasks;
  }

  push(): void {
    if (this.#pushing) return;
    this.#pushing = true;
    this.#tasks?.enqueue(this.#push);
  }

  room(): void {
    this.push();
  }

  /** The frame is a copy already: the device's. */
  send(): boolean {
    this.returned += 1;
    this.credit += 1;
    this.push();
    return true;
  }

  async close(): Promise<void> {}
}

interface Opened {
  readonly machine: Machine;
  readonly nics: readonly NetworkInterface[];
}

/** A machine of these devices, their interfaces up. */
async function open(
  devices: Parameters<typeof embedded>[0],
  options: Parameters<typeof vtnet>[0] = {},
): Promise<Opened> {
  const machine = await embedded(devices);
  const [bus] = machine.buses;
  if (bus?.kind !== "pci") throw new Error("no PCI bus");
  const nics: NetworkInterface[] = [];
  for (const node of await probe(bus.bus)) {
    const nic = await attach(node, vtnet(options), { unit: nics.length, cpus: machine.cpus });
    await nic.setMtu(Math.min(nic.maxMtu, 9216));
    // The frames are for no address of its own.
    await nic.setPromiscuous(true);
    await nic.up();
    nics.push(nic);
  }
  return { machine, nics };
}

async function shut({ machine, nics }: Opened): Promise<void> {
  for (const nic of nics) await nic.detach();
  await machine.close();
}

/** Receives, swaps the addresses, transmits the same buffers. */
function forward({ memory }: Machine, nic: NetworkInterface): void {
  const halves = new Uint16Array(memory.buffer, 0, memory.buffer.byteLength >>> 1);
  const frames: (Frame | null)[] = new Array(BATCH).fill(null);
  nic.onReceive = (queue) => {
    for (;;) {
      const count = nic.receiveBurst(queue, frames, BATCH);
      if (count === 0) return;
      for (let i = 0; i < count; i++) {
        const frame = frames[i] as Frame;
        // Frames of this driver begin where a word begins.
        const at = frame.offset >>> 1;
        for (let half = at; half < at + 3; half++) {
          const other = halves[half] as number;
          halves[half] = halves[half + 3] as number;
          halves[half + 3] = other;
        }
      }
      const taken = nic.transmitBurst(queue, frames, count);
      if (taken < count) throw new Error("no room for a frame that was just received");
    }
  };
}

interface ForwardShape {
  readonly size: number;
  readonly pairs: number;
  readonly packed: boolean;
}

const forwards: readonly ForwardShape[] = [
  ...[64, 512, 1514, 9014].map((size) => ({ size, pairs: 1, packed: false })),
  { size: 64, pairs: 1, packed: true },
  ...[2, 8].map((pairs) => ({ size: 64, pairs, packed: false })),
];

/** Who forwards looks at no checksums and wants each frame by itself. */
const forwarding = { csumDisable: true };

const nameOf = ({ size, pairs, packed }: ForwardShape): string =>
  `forward-${size}-q${pairs}${packed ? "-packed" : ""}`;

const forwardDevice = (generator: Generator, { pairs, packed }: ForwardShape) => ({
  devices: [{ kind: "net" as const, backend: generator, queues: pairs, packed, mtu: 9216 }],
});

/** Copies of a frame in and out a second, by a loop that does nothing else: pairs of copies. */
function copying(size: number): number {
  const stride = (size + 63) & ~63;
  const frames = new Store(udpFrames(size, stride));
  const guest = new Store(new Uint8Array(WINDOW * stride));
  const out = new Store(new Uint8Array(FLOWS * stride));
  const began = performance.now();
  let count = 0;
  for (let ms = 0; ms < ROUND / 2; ms = performance.now() - began) {
    for (let i = 0; i < 1024; i++) {
      const at = (i % FLOWS) * stride;
      const slot = (i % WINDOW) * stride;
      copyFrame(frames, at, guest, slot, size);
      copyFrame(guest, slot, out, at, size);
    }
    count += 1024;
  }
  return (count / (performance.now() - began)) * 1000;
}

/** Frames a second for a round. */
async function forwarded(generator: Generator): Promise<number> {
  const from = generator.returned;
  const began = performance.now();
  generator.credit = WINDOW;
  generator.push();
  while (performance.now() - began < ROUND) await turn();
  const rate = ((generator.returned - from) / (performance.now() - began)) * 1000;
  // What is under way comes back before the next round.
  generator.credit = Number.NEGATIVE_INFINITY;
  await turn();
  await turn();
  return rate;
}

const median = (values: number[]): number =>
  values.sort((a, b) => a - b)[values.length >> 1] as number;

async function forwardRow(shape: ForwardShape, rounds: number): Promise<Row> {
  const generator = new Generator(shape.size);
  const opened = await open(forwardDevice(generator, shape), forwarding);
  for (const nic of opened.nics) forward(opened.machine, nic);
  const ours: number[] = [];
  const peers: number[] = [];
  await forwarded(generator);
  for (let round = 0; round < rounds; round++) {
    ours.push(await forwarded(generator));
    peers.push(copying(shape.size));
  }
  await shut(opened);
  const [rate, peer] = [median(ours), median(peers)];
  return { name: nameOf(shape), ours: rate, peer, ratio: rate / peer };
}

/** Collects all garbage now. */
function collect(): void {
  setFlagsFromString("--expose-gc");
  (runInNewContext("gc") as () => void)();
}

/** Garbage collections while frames are forwarded. */
async function forwardedGarbage(): Promise<number> {
  const shape = forwards[0] as ForwardShape;
  const generator = new Generator(shape.size);
  const opened = await open(forwardDevice(generator, shape), forwarding);
  for (const nic of opened.nics) forward(opened.machine, nic);
  const collections: number[] = [];
  const observer = new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) collections.push(entry.startTime);
  });
  observer.observe({ entryTypes: ["gc"] });
  await forwarded(generator);
  // What attaching and compiling left is not the frames'.
  collect();
  const began = performance.now();
  const from = generator.returned;
  generator.credit = WINDOW;
  generator.push();
  while (generator.returned - from < GC_FRAMES) {
    await new Promise((r) => setTimeout(r, 20));
    if (performance.now() - began > GC_MS) throw new Error(`no ${GC_FRAMES} frames in ${GC_MS} ms`);
  }
  const ended = performance.now();
  generator.credit = Number.NEGATIVE_INFINITY;
  await turn();
  await turn();
  observer.disconnect();
  await shut(opened);
  return collections.filter((at) => at >= began && at <= ended).length;
}

/**
 * Microseconds from transmitBurst to receiveBurst through the loopback wire, sorted, a million frames a second offered; what is
 * offered in the first WARM_UP seconds does not count.
 */
async function latencies(seconds: number): Promise<Float64Array> {
  const opened = await open({ devices: [{ kind: "net", backend: new LoopbackBackend() }] });
  const { machine, nics } = opened;
  const nic = nics[0] as NetworkInterface;
  const offered = Math.floor((WARM_UP + seconds) * 1e6);
  const skipped = WARM_UP * 1e6;
  const sentAt = new Float64Array(offered);
  const result = new Float64Array(offered);
  const template = new Store(udpFrames(64, 64).subarray(0, 64));
  const guest = new Store(new Uint8Array(machine.memory.buffer));
  const mine: (Frame | null)[] = new Array(BATCH).fill(null);
  const theirs: (Frame | null)[] = new Array(BATCH).fill(null);
  let sent = 0;
  let received = 0;
  const began = performance.now();
  await new Promise<void>((resolve) => {
    const receive = (): void => {
      for (;;) {
        const count = nic.receiveBurst(0, theirs, BATCH);
        if (count === 0) return;
        const now = performance.now();
        for (let i = 0; i < count; i++) {
          const frame = theirs[i] as Frame;
          const { bytes, offset } = frame;
          const number =
            (bytes[offset + 42] as number) |
            ((bytes[offset + 43] as number) << 8) |
            ((bytes[offset + 44] as number) << 16);
          result[number] = (now - (sentAt[number] as number)) * 1000;
          received += 1;
          nic.release(frame);
        }
      }
    };
    const step = (): void => {
      receive();
      const now = performance.now();
      // What should have been sent by now, as many as a burst takes.
      const due = Math.min(offered, Math.floor((now - began) * 1000), sent + BATCH);
      let count = 0;
      while (sent + count < due) {
        const frame = nic.allocate();
        if (frame === null) break;
        copyFrame(template, 0, guest, frame.offset, 64);
        const number = sent + count;
        frame.bytes[frame.offset + 42] = number;
        frame.bytes[frame.offset + 43] = number >>> 8;
        frame.bytes[frame.offset + 44] = number >>> 16;
        frame.length = 64;
        sentAt[number] = now;
        mine[count++] = frame;
      }
      const taken = count === 0 ? 0 : nic.transmitBurst(0, mine, count);
      for (let i = taken; i < count; i++) nic.release(mine[i] as Frame);
      sent += taken;
      if (received < offered && now - began < (WARM_UP + seconds) * 3000)
        machine.tasks.enqueue(step);
      else resolve();
    };
    nic.onReceive = receive;
    machine.tasks.enqueue(step);
  });
  await shut(opened);
  if (received < offered) throw new Error(`${received} of ${offered} frames came back`);
  return result.subarray(skipped).sort();
}

/** Bits a second of TCP payload: 64 KiB frames to segment, cut by the model, checksums verified at the other interface. */
async function bulk(): Promise<number> {
  const [left, right] = new Wire().ends;
  const opened = await open({
    devices: [
      { kind: "net", backend: left, mtu: 1500 },
      { kind: "net", backend: right, mtu: 1500 },
    ],
  });
  const { machine, nics } = opened;
  const [sender, receiver] = nics as [NetworkInterface, NetworkInterface];
  const frames: (Frame | null)[] = new Array(BATCH).fill(null);
  // Segments are to be seen as they are.
  await receiver.setCapability(InterfaceCapability.LRO, false);
  let payload = 0;
  let wrong = 0;
  receiver.onReceive = (queue) => {
    for (;;) {
      const count = receiver.receiveBurst(queue, frames, BATCH);
      if (count === 0) return;
      for (let i = 0; i < count; i++) {
        const frame = frames[i] as Frame;
        const { bytes, offset, length } = frame;
        const pseudo = pseudoSum4(bytes, offset + 14, IpProtocol.TCP, length - L4);
        if (sum(bytes, offset + L4, offset + length, pseudo) !== 0xffff) wrong += 1;
        payload += length - L4 - TCP_HEADER_SIZE;
        receiver.release(frame);
      }
    }
  };
  const began = performance.now();
  const most = 0xffff + ETHERNET_HEADER_SIZE;
  const one: (Frame | null)[] = [null];
  await new Promise<void>((resolve) => {
    const step = (): void => {
      for (let n = 0; n < 4; n++) {
        const frame = bulkFrame(sender, most);
        if (frame === null) break;
        one[0] = frame;
        if (sender.transmitBurst(0, one, 1) === 0) {
          sender.release(frame);
          break;
        }
      }
      if (performance.now() - began < ROUND) machine.tasks.enqueue(step);
      else resolve();
    };
    machine.tasks.enqueue(step);
  });
  await turn();
  const seconds = (performance.now() - began) / 1000;
  await shut(opened);
  if (wrong > 0) throw new Error(`${wrong} segments with a wrong checksum`);
  return (payload * 8) / seconds;
}

/** A TCP frame of `length` bytes in as many buffers as it takes, to be segmented to 1500; null: none are left. */
function bulkFrame(nic: NetworkInterface, length: number): Frame | null {
  const head = nic.allocate();
  if (head === null) return null;
  writeHeaders(head.bytes, head.offset, length, IpProtocol.TCP, 0);
  const { bytes, offset } = head;
  bytes[offset + L4 + 12] = (TCP_HEADER_SIZE / 4) << 4;
  bytes[offset + L4 + 13] = TcpFlag.ACK;
  put16(bytes, offset + L4 + 16, pseudoSum4(bytes, offset + 14, IpProtocol.TCP, length - L4));
  head.flags = NetHeaderFlag.NEEDS_CSUM;
  head.csumStart = L4;
  head.csumOffset = 16;
  head.gsoType = 1;
  head.gsoSize = 1460;
  let left = length;
  for (let frame: Frame = head; ; ) {
    frame.length = Math.min(left, frame.room);
    left -= frame.length;
    if (left === 0) return head;
    const next = nic.allocate();
    if (next === null) {
      nic.release(head);
      return null;
    }
    frame.next = next;
    frame = next;
  }
}

const LATENCY = "latency-1mpps";
const BULK = "bulk-tso-1500";
const GARBAGE = "garbage";

/** Names of all rows. */
export const netNames: readonly string[] = [...forwards.map(nameOf), LATENCY, BULK, GARBAGE];

/** Measures the rows whose name matches; returns those that can be compared, and the names of those that miss their target. */
export async function net(
  only: RegExp,
  rounds: number,
): Promise<{ readonly rows: readonly Row[]; readonly missed: readonly string[] }> {
  const rows: Row[] = [];
  const missed: string[] = [];
  const verdict = (name: string, met: boolean, target: string): string => {
    if (!met) missed.push(name);
    return `  ${met ? "met" : "MISSED"} (${target})`;
  };
  for (const shape of forwards) {
    const name = nameOf(shape);
    if (!only.test(name)) continue;
    const row = await forwardRow(shape, rounds);
    rows.push(row);
    const target =
      name === "forward-64-q1"
        ? verdict(name, row.ours >= 8e6 && row.ratio >= 0.3, "8 Mpps, 0.3")
        : "";
    console.log(
      `${name.padEnd(24)} ${(row.ours / 1e6).toFixed(2).padStart(6)} Mpps ` +
        `${((row.ours * shape.size * 8) / 1e9).toFixed(2).padStart(6)} Gbit/s  ` +
        `copying ${(row.peer / 1e6).toFixed(2).padStart(6)} Mpps  ratio ${row.ratio.toFixed(3)}${target}`,
    );
  }
  if (only.test(LATENCY)) {
    const sorted = await latencies(2);
    const at = (p: number): number =>
      sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * p))] ?? Number.NaN;
    const [p50, p99, p999, most] = [at(0.5), at(0.99), at(0.999), at(1)];
    const target = verdict(LATENCY, p99 <= 50, "p99 50 us");
    console.log(
      `${LATENCY.padEnd(24)} ${sorted.length} frames: p50 ${p50.toFixed(1)} p99 ${p99.toFixed(1)} ` +
        `p99.9 ${p999.toFixed(1)} max ${most.toFixed(1)} us${target}`,
    );
    rows.push({ name: LATENCY, ours: p99, peer: 50, ratio: 50 / p99 });
  }
  if (only.test(BULK)) {
    const rates: number[] = [];
    for (let round = 0; round < rounds; round++) rates.push(await bulk());
    const rate = median(rates);
    const target = verdict(BULK, rate >= 3e9, "3 Gbit/s");
    console.log(`${BULK.padEnd(24)} ${(rate / 1e9).toFixed(2).padStart(6)} Gbit/s${target}`);
    rows.push({ name: BULK, ours: rate, peer: 3e9, ratio: rate / 3e9 });
  }
  if (only.test(GARBAGE)) {
    const collections = await forwardedGarbage();
    const target = verdict(GARBAGE, collections === 0, "0");
    console.log(`${GARBAGE.padEnd(24)} ${collections} collections in ${GC_FRAMES} frames${target}`);
  }
  return { rows, missed };
}
