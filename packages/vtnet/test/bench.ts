// vtnet on the embedded machine.
import { SysctlTree } from "@virtio/core";
import {
  type EmbeddedMachine,
  type EmbeddedNetOptions,
  embedded,
  LoopbackBackend,
  net,
  RuleBook,
} from "@virtio/hypervisor";
import { complete, EtherType, IpProtocol, parseMac, pseudoSum4, put16, sum } from "@virtio/packets";
import { attach, probe } from "@virtio/pci-transport";
import { afterEach, expect } from "vitest";
import { type Vtnet, type VtnetOptions, vtnet } from "../src/index.js";

const machines: EmbeddedMachine[] = [];
const books: RuleBook[] = [];
afterEach(async () => {
  for (const machine of machines.splice(0)) await machine.close();
  // Nothing that the rule book knows was broken.
  for (const rules of books.splice(0)) expect(rules.violations).toEqual([]);
});

/** An interface of a machine, and what was said of it. */
interface Bench {
  readonly iface: Vtnet;
  readonly lines: string[];
  readonly sysctl: SysctlTree;
}

/** A machine with one device, and its driver; the test that made it fails when a rule was broken. */
export async function bench(
  options: EmbeddedNetOptions = {},
  driver: VtnetOptions = {},
  rules: RuleBook = new RuleBook(),
): Promise<Bench> {
  const lines: string[] = [];
  const machine = await embedded({
    devices: [net({ backend: new LoopbackBackend(), ...options })],
    rules,
  });
  machines.push(machine);
  books.push(rules);
  const [bus] = machine.buses;
  if (bus?.kind !== "pci") throw new Error("no PCI bus");
  const [node] = await probe(bus.bus);
  if (node === undefined) throw new Error("no device");
  const sysctl = new SysctlTree();
  const iface = await attach(node, vtnet(driver), {
    cpus: machine.cpus,
    log: (line) => lines.push(line),
    sysctl: sysctl.node("vtnet", ""),
  });
  return { iface, lines, sysctl };
}

/** Turns of the event loop until it is so. */
export async function until(done: () => boolean): Promise<void> {
  for (let turn = 0; !done(); turn++) {
    if (turn === 5000) throw new Error("it never came");
    await new Promise((resolve) => setImmediate(resolve));
  }
}

/** TCP over IPv4 from the interface to itself; the checksum is the pseudo header's sum. */
export function tcp(payload: number): Uint8Array {
  const bytes = new Uint8Array(54 + payload);
  bytes.set(parseMac("52:54:00:12:34:56"), 0);
  bytes.set(parseMac("52:54:00:12:34:56"), 6);
  put16(bytes, 12, EtherType.IPV4);
  bytes.set([0x45, 0, 0, 0, 0, 1, 0, 0, 64, IpProtocol.TCP, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2], 14);
  put16(bytes, 16, 40 + payload);
  put16(bytes, 24, complete(sum(bytes, 14, 34)));
  put16(bytes, 34, 4000);
  put16(bytes, 36, 80);
  bytes.set([0x50, 0x10], 46);
  for (let i = 0; i < payload; i++) bytes[54 + i] = (i * 13) >>> 3;
  put16(bytes, 50, pseudoSum4(bytes, 14, IpProtocol.TCP, 20 + payload));
  return bytes;
}

/** What asks for segments of 1448 bytes of such a packet. */
export const tso = { flags: 1, csumStart: 34, csumOffset: 16, gsoType: 1, gsoSize: 1448 };
