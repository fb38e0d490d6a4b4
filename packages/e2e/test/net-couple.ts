// Two network interfaces of one kind on a cable, for tests: what they send, what comes to them, what passes on the cable.
import { type Frame, InterfaceCapability, SysctlTree } from "@virtio/core";
import { embedded, NetPort, net, RuleBook, Wire } from "@virtio/hypervisor";
import { attach, probe } from "@virtio/pci-transport";
import { type Vtnet, vtnet } from "@virtio/vtnet";
import { expect, onTestFinished } from "vitest";
import type { Kind, Random, Sending } from "./net-load.js";
import { build, checksumOffsetOf, flowOf, transportOf } from "./wire-frames.js";

/** Frames given to the interface at once: a device sees several segments of a flow together. */
const BURST = 32;
export const NEEDS_CSUM = 1;

/** A received frame, copied. */
export interface Received {
  readonly bytes: Uint8Array;
  readonly flow: number;
  readonly queue: number;
  readonly flags: number;
  readonly gsoType: number;
  readonly gsoSize: number;
  readonly checksumAt: readonly [start: number, offset: number];
  readonly tag: number;
}

/** An interface, and all that came to it. */
export interface Station {
  readonly iface: Vtnet;
  readonly port: NetPort;
  readonly received: Received[];
  counter(name: string): number;
}

/** Turns of the event loop until it is so. */
export async function until(done: () => boolean, what: () => string): Promise<void> {
  for (let turn = 0; !done(); turn++) {
    if (turn === 5000) throw new Error(what());
    await new Promise((resolve) => setImmediate(resolve));
  }
}

export interface Couple {
  readonly stations: readonly [Station, Station];
  /** What the first has sent. */
  readonly cable: readonly Uint8Array[];
  /** Sends what the first did not. */
  inject(bytes: Uint8Array): void;
}

/** Makes them. In the end the rule book must be empty. */
export async function couple(kind: Kind): Promise<Couple> {
  const { mergeable, csum, tso4, tso6, ecn, lro, vlan, pairs, ring, mtu } = kind;
  const wire = new Wire();
  const cable: Uint8Array[] = [];
  const [end] = wire.ends;
  const send = end.send.bind(end);
  end.send = (bytes, offset, length) => {
    const taken = send(bytes, offset, length);
    if (taken) cable.push(bytes.slice(offset, offset + length));
    return taken;
  };
  const rules = new RuleBook();
  const ports = wire.ends.map(() => new NetPort());
  const machine = await embedded({
    rules,
    devices: wire.ends.map((backend, i) =>
      net({
        backend,
        port: ports[i],
        queues: pairs,
        packed: ring === "packed",
        partialChecksums: csum === "partial",
        features: {
          MRG_RXBUF: mergeable,
          CSUM: csum !== "off",
          GUEST_CSUM: csum !== "off",
          HOST_TSO4: tso4,
          HOST_TSO6: tso6,
          HOST_ECN: ecn,
          GUEST_ECN: ecn && csum !== "off",
        },
      }),
    ),
  });
  onTestFinished(async () => {
    await machine.close();
    expect(rules.violations).toEqual([]);
  });
  const sysctl = new SysctlTree();
  const stations = (await probe(machine.buses[0].bus)).map(async (node, unit): Promise<Station> => {
    const name = `vtnet${unit}`;
    const iface = await attach(node, vtnet({ lroDisable: !lro }), {
      unit,
      name,
      cpus: machine.cpus,
      sysctl: sysctl.node(name, ""),
    });
    if (vlan === "bytes" && iface.capabilities.has(InterfaceCapability.VLAN_HWTAGGING))
      await iface.setCapability(InterfaceCapability.VLAN_HWTAGGING, false);
    await iface.setMtu(mtu);
    const received: Received[] = [];
    iface.onReceive = (queue) => receive(iface, queue, received);
    await iface.up();
    const counter = (leaf: string): number =>
      Number(sysctl.find(`${name}.${leaf}`)[0]?.read() ?? Number.NaN);
    return { iface, port: ports[unit] as NetPort, received, counter };
  });
  return {
    stations: (await Promise.all(stations)) as [Station, Station],
    cable,
    inject: (bytes) => expect(send(bytes, 0, bytes.length)).toBe(true),
  };
}

const burst: (Frame | null)[] = new Array(BURST).fill(null);

/** Takes all that a queue has. */
function receive(iface: Vtnet, queue: number, into: Received[]): void {
  for (let n = iface.receiveBurst(queue, burst, BURST); n > 0; ) {
    for (const frame of burst.slice(0, n) as Frame[]) {
      const parts: Uint8Array[] = [];
      for (let part: Frame | null = frame; part !== null; part = part.next)
        parts.push(part.bytes.subarray(part.offset, part.offset + part.length));
      const bytes = new Uint8Array(Buffer.concat(parts));
      expect(frame.queue).toBe(queue);
      const { flags, gsoType, gsoSize, csumStart, csumOffset, vlanTag: tag } = frame;
      const checksumAt = [csumStart, csumOffset] as const;
      into.push({ bytes, flow: flowOf(bytes), queue, flags, gsoType, gsoSize, checksumAt, tag });
      iface.release(frame);
    }
    n = iface.receiveBurst(queue, burst, BURST);
  }
}

/** Puts a frame into buffers; null: there are not enough now. */
export function fill(
  iface: Vtnet,
  kind: Kind,
  { packet, ask, scattered }: Sending,
  random: Random,
): Frame | null {
  const tagged = kind.vlan === "bytes";
  const partial = ask !== "nothing";
  const bytes = build(packet, tagged, partial);
  let head: Frame | null = null;
  let tail: Frame | null = null;
  for (let at = 0; at < bytes.length; ) {
    const part = iface.allocate();
    if (part === null) {
      if (head !== null) iface.release(head);
      return null;
    }
    const most = scattered ? 1 + random(bytes.length / 4) : part.room;
    const piece = bytes.subarray(at, at + Math.min(most, part.room));
    part.bytes.set(piece, part.offset);
    part.length = piece.length;
    at += piece.length;
    head ??= part;
    if (tail !== null) tail.next = part;
    tail = part;
  }
  if (head === null) return null;
  if (kind.vlan === "metadata") head.vlanTag = packet.tag;
  if (!partial) return head;
  head.flags = NEEDS_CSUM;
  head.csumStart = transportOf(packet, tagged);
  head.csumOffset = checksumOffsetOf(packet);
  if (ask === "checksum") return head;
  head.gsoType = packet.ip === 4 ? 1 : 4;
  head.gsoSize = ask;
  return head;
}

/** Transmits all, by the queue of each flow. */
export async function transmit(
  { iface }: Station,
  kind: Kind,
  sendings: readonly Sending[],
  random: Random,
): Promise<void> {
  const waiting: Frame[] = [];
  let next = 0;
  await until(
    () => {
      for (; next < sendings.length && waiting.length < BURST; next++) {
        const frame = fill(iface, kind, sendings[next] as Sending, random);
        if (frame === null) break;
        waiting.push(frame);
      }
      waiting.splice(0, iface.transmitBurst(-1, waiting, waiting.length));
      return next === sendings.length && waiting.length === 0;
    },
    () => `${sendings.length - next} frames find no room`,
  );
}
