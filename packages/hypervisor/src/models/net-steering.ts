// Which pair of queues a received frame goes by: the flow's, or what the hash says (virtio 1.4 §5.1.9.5.6, §5.1.9.5.7).
import { get16, get32, type Headers } from "@virtio/packets";
import { ToeplitzHash } from "./net-hash.js";

/** Flows that are remembered, a power of two. Two that share a place share a queue: no harm. */
const FLOWS = 1024;
const UNKNOWN = 0xffff;

/** The queue that each frame takes. */
export class NetSteering {
  readonly hash: ToeplitzHash = new ToeplitzHash();
  /** Pairs of queues in use. */
  pairs = 1;
  /** RSS_CONFIG was accepted: its table decides, not flows. */
  rss = false;
  /** Hashes are computed, for RSS or to be reported. */
  hashing = false;
  readonly #table: Uint16Array;
  #mask = 0;
  #unclassified = 0;
  /** The pair by which the driver transmitted last, by flow. */
  readonly #flows = new Uint16Array(FLOWS).fill(UNKNOWN);

  /** @param tableSize - most entries of an indirection table */
  constructor(tableSize: number) {
    this.#table = new Uint16Array(tableSize);
  }

  /** Sets automatic steering over `pairs` pairs. */
  setPairs(pairs: number): void {
    this.rss = false;
    this.pairs = pairs;
  }

  /** Sets RSS: for each masked hash the pair, which the caller has checked. */
  setTable(table: ArrayLike<number>, unclassified: number, pairs: number): void {
    this.rss = true;
    this.pairs = pairs;
    this.#mask = table.length - 1;
    this.#table.set(table);
    this.#unclassified = unclassified;
  }

  /** The driver sent a frame by this pair. */
  learn(headers: Headers, bytes: Uint8Array, offset: number, pair: number): void {
    if (headers.ip !== 0) this.#flows[flowOf(headers, bytes, offset)] = pair;
  }

  /** The pair for a received frame; with `hashing` the frame's hash was computed. */
  choose(headers: Headers, bytes: Uint8Array, offset: number): number {
    if (this.rss)
      return this.hash.report === 0
        ? this.#unclassified
        : (this.#table[this.hash.value & this.#mask] as number);
    if (this.pairs === 1 || headers.ip === 0) return 0;
    const flow = flowOf(headers, bytes, offset);
    const known = this.#flows[flow] as number;
    return known < this.pairs ? known : flow % this.pairs;
  }

  /** As after a reset: only the first pair. */
  reset(): void {
    this.setPairs(1);
    this.hashing = false;
    this.hash.types = 0;
    this.#flows.fill(UNKNOWN);
  }
}

/** The same number for both directions of a flow. */
function flowOf(
  { ip, l3, l4, l4HeaderLength }: Headers,
  bytes: Uint8Array,
  offset: number,
): number {
  let mixed = 0;
  const first = offset + l3 + (ip === 4 ? 12 : 8);
  const end = first + (ip === 4 ? 8 : 32);
  for (let at = first; at < end; at += 4) mixed ^= get32(bytes, at);
  // Ports; a protocol without them has none.
  if (l4 >= 0 && l4HeaderLength > 0)
    mixed ^= (get16(bytes, offset + l4) ^ get16(bytes, offset + l4 + 2)) * 0x1_0001;
  mixed = Math.imul(mixed ^ (mixed >>> 16), 0x45d9_f3b5);
  return ((mixed ^ (mixed >>> 15)) >>> 0) & (FLOWS - 1);
}
