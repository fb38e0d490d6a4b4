// What is counted, and where sysctl shows it. Typed arrays: a number that outgrows 2^31 in an object is allocated anew at each change.
import type { InterfaceStatistics, SysctlNode } from "@virtio/core";

/** Of a receive queue. */
export enum RxCount {
  IPACKETS,
  IBYTES,
  IMCASTS,
  IQDROPS,
  IERRORS,
  CSUM,
  CSUM_FAILED,
  HOST_LRO,
  RESCHEDULED,
}
/** Of a transmit queue. */
export enum TxCount {
  OPACKETS,
  OBYTES,
  OMCASTS,
  CSUM,
  TSO,
  RESCHEDULED,
  OERRORS,
  OQDROPS,
}
/** Of the interface (vtnet_statistics). */
export enum Count {
  MBUF_ALLOC_FAILED,
  RX_FRAME_TOO_LARGE,
  RX_ENQ_REPLACEMENT_FAILED,
  RX_MERGEABLE_FAILED,
  RX_CSUM_BAD_OFFSET,
  TX_CSUM_UNKNOWN_ETHTYPE,
  TX_CSUM_PROTO_MISMATCH,
  TX_TSO_NOT_TCP,
  TX_TSO_WITHOUT_CSUM,
  TX_DEFRAGGED,
  TX_DEFRAG_FAILED,
}

const rxLeaves: Readonly<Record<RxCount, string>> = {
  [RxCount.IPACKETS]: "Received packets",
  [RxCount.IBYTES]: "Received bytes",
  [RxCount.IMCASTS]: "Received multicasts",
  [RxCount.IQDROPS]: "Received packets dropped for want of a buffer",
  [RxCount.IERRORS]: "Received packets that are none",
  [RxCount.CSUM]: "Received packets whose checksum the device answers for",
  [RxCount.CSUM_FAILED]: "Received packets whose checksum offload makes no sense",
  [RxCount.HOST_LRO]: "Received packets of several segments",
  [RxCount.RESCHEDULED]: "Times that others got their turn before a queue was empty",
};
const txLeaves: Readonly<Record<TxCount, string>> = {
  [TxCount.OPACKETS]: "Transmitted packets",
  [TxCount.OBYTES]: "Transmitted bytes",
  [TxCount.OMCASTS]: "Transmitted multicasts",
  [TxCount.CSUM]: "Transmitted packets with checksum offload",
  [TxCount.TSO]: "Transmitted packets with segmentation offload",
  [TxCount.RESCHEDULED]: "Times that packets waited for room",
  [TxCount.OERRORS]: "Packets that could not be sent at all",
  [TxCount.OQDROPS]: "Packets that the device never answered for",
};
const leaves: Readonly<Record<Count, string>> = {
  [Count.MBUF_ALLOC_FAILED]: "Times that no cluster was free",
  [Count.RX_FRAME_TOO_LARGE]: "Received frames larger than a buffer",
  [Count.RX_ENQ_REPLACEMENT_FAILED]: "Times that a replacement buffer could not be enqueued",
  [Count.RX_MERGEABLE_FAILED]: "Times that the buffers of a merged packet were not there",
  [Count.RX_CSUM_BAD_OFFSET]: "Received packets whose checksum lies outside of them",
  [Count.TX_CSUM_UNKNOWN_ETHTYPE]: "Offloads asked for packets that are not IP",
  [Count.TX_CSUM_PROTO_MISMATCH]: "Offloads asked for another protocol than the packet's",
  [Count.TX_TSO_NOT_TCP]: "Segmentation asked for packets that are not TCP, or not UDP",
  [Count.TX_TSO_WITHOUT_CSUM]: "Segmentation asked for without checksum offload",
  [Count.TX_DEFRAGGED]: "Transmitted packets that were copied to fit",
  [Count.TX_DEFRAG_FAILED]: "Transmitted packets that could not be copied to fit",
};

/** Values of one of the enums above. */
export type Counters<E extends number> = Float64Array & { readonly of?: E };
const rxCounters = (): Counters<RxCount> => new Float64Array(RxCount.RESCHEDULED + 1);
const txCounters = (): Counters<TxCount> => new Float64Array(TxCount.OQDROPS + 1);

/** The counters of an interface: its own and those of the queues it uses. */
export class Statistics {
  readonly device: Counters<Count> = new Float64Array(Count.TX_DEFRAG_FAILED + 1);
  readonly rx: Counters<RxCount>[] = [];
  readonly tx: Counters<TxCount>[] = [];

  constructor(pairs: number) {
    for (let i = 0; i < pairs; i++) {
      this.rx.push(rxCounters());
      this.tx.push(txCounters());
    }
  }

  /** The sums over all queues (if_data). */
  get interface(): InterfaceStatistics {
    return {
      ipackets: this.#rxSum(RxCount.IPACKETS),
      ibytes: this.#rxSum(RxCount.IBYTES),
      imcasts: this.#rxSum(RxCount.IMCASTS),
      ierrors: this.#rxSum(RxCount.IERRORS),
      iqdrops: this.#rxSum(RxCount.IQDROPS),
      opackets: this.#txSum(TxCount.OPACKETS),
      obytes: this.#txSum(TxCount.OBYTES),
      omcasts: this.#txSum(TxCount.OMCASTS),
      oerrors: this.#txSum(TxCount.OERRORS),
      oqdrops: this.#txSum(TxCount.OQDROPS),
    };
  }

  #rxSum(count: RxCount): number {
    return this.rx.reduce((sum, counters) => sum + (counters[count] ?? 0), 0);
  }

  #txSum(count: TxCount): number {
    return this.tx.reduce((sum, counters) => sum + (counters[count] ?? 0), 0);
  }

  /** `dev.vtnet.0`: vtnet_setup_sysctl. */
  publish(root: SysctlNode): void {
    publish(root, Count, leaves, this.device);
    for (const [name, what, sum] of [
      ["rx_csum_offloaded", rxLeaves[RxCount.CSUM], () => this.#rxSum(RxCount.CSUM)],
      ["rx_csum_failed", rxLeaves[RxCount.CSUM_FAILED], () => this.#rxSum(RxCount.CSUM_FAILED)],
      [
        "rx_task_rescheduled",
        rxLeaves[RxCount.RESCHEDULED],
        () => this.#rxSum(RxCount.RESCHEDULED),
      ],
      ["tx_csum_offloaded", txLeaves[TxCount.CSUM], () => this.#txSum(TxCount.CSUM)],
      ["tx_tso_offloaded", txLeaves[TxCount.TSO], () => this.#txSum(TxCount.TSO)],
      [
        "tx_task_rescheduled",
        txLeaves[TxCount.RESCHEDULED],
        () => this.#txSum(TxCount.RESCHEDULED),
      ],
    ] as const)
      root.value(name, what, sum);
    for (const [i, counters] of this.rx.entries())
      publish(root.node(`rxq${i}`, "Receive queue"), RxCount, rxLeaves, counters);
    for (const [i, counters] of this.tx.entries())
      publish(root.node(`txq${i}`, "Transmit queue"), TxCount, txLeaves, counters);
  }
}

/** A leaf for each member of an enum, named as it is. */
function publish(
  node: SysctlNode,
  names: Readonly<Record<number, string>>,
  descriptions: Readonly<Record<number, string>>,
  counters: Float64Array,
): void {
  for (let i = 0; i < counters.length; i++)
    node.value((names[i] ?? "").toLowerCase(), descriptions[i] ?? "", () => counters[i] ?? 0);
}
