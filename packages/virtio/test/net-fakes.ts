// A network interface whose other end is a wire of the test's, and a shell on it.
import {
  type Attached,
  type CapturedFrame,
  type Coalescing,
  type Driver,
  type Frame,
  InterfaceCapability,
  type NetworkInterface,
  type VirtioDevice,
  VirtioFault,
} from "@virtio/core";
import { GatewayBackend, type NetBackend } from "@virtio/hypervisor";
import { onTestFinished } from "vitest";
import { FakeMachine, fakeModules, pciFunction } from "./fakes.js";
import { type TestShell, testShell } from "./session.js";

/** An interface over streams alone, that remembers what was asked of it. */
class FakeInterface implements NetworkInterface {
  readonly kind = "network";
  readonly name: string;
  mac = "52:54:00:12:34:56";
  mtu = 1500;
  readonly maxMtu: number = 9216;
  running = false;
  promiscuous = false;
  allMulticast = false;
  link: NetworkInterface["link"] = { up: true, speed: null, duplex: null };
  readonly queuePairs: number = 1;
  readonly capabilities: ReadonlySet<InterfaceCapability> = new Set([
    ...[InterfaceCapability.TXCSUM, InterfaceCapability.RXCSUM],
    ...[InterfaceCapability.TSO4, InterfaceCapability.TSO6, InterfaceCapability.VLAN_MTU],
  ]);
  readonly enabled = new Set<InterfaceCapability>([
    InterfaceCapability.RXCSUM,
    InterfaceCapability.VLAN_MTU,
  ]);
  readonly statistics = {
    ...{ ipackets: 1, ibytes: 2, imcasts: 3, ierrors: 4, iqdrops: 5 },
    ...{ opackets: 6, obytes: 7, omcasts: 8, oerrors: 9, oqdrops: 10 },
  };
  readonly readable: ReadableStream<Uint8Array>;
  readonly writable: WritableStream<Uint8Array>;
  readonly closed: Promise<VirtioFault | null>;
  /** Ends it. */
  end: () => void = () => {};
  /** What was asked: `setMtu 9000`. */
  readonly asked: string[] = [];
  groups: readonly string[] = [];
  readonly listeners = new Set<(up: boolean) => void>();
  readonly #captures = new Set<(frame: CapturedFrame) => void>();
  readonly #machine: FakeMachine;
  #input: ReadableStreamDefaultController<Uint8Array> | null = null;
  onReceive: NetworkInterface["onReceive"] = null;
  onRoom: NetworkInterface["onRoom"] = null;

  constructor(name: string, machine: FakeMachine, wire: Pick<NetBackend, "send">) {
    this.name = name;
    this.closed = new Promise((resolve) => {
      this.end = () => resolve(null);
    });
    this.#machine = machine;
    this.readable = new ReadableStream({
      start: (controller) => {
        this.#input = controller;
      },
    });
    this.writable = new WritableStream({
      write: (frame) => {
        this.#captured("out", frame);
        wire.send(frame, 0, frame.length);
      },
    });
  }

  #captured(direction: "in" | "out", bytes: Uint8Array): void {
    const time = this.#machine.time;
    for (const listener of this.#captures) listener({ direction, time, bytes });
  }

  /** A frame comes. */
  receive(frame: Uint8Array): void {
    this.#captured("in", frame);
    this.#input?.enqueue(frame);
  }

  setLink(up: boolean): void {
    this.link = { ...this.link, up };
    for (const listener of this.listeners) listener(up);
  }

  #ask(...words: readonly (string | number | boolean)[]): void {
    this.asked.push(words.join(" "));
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Uint8Array> {
    const reader = this.readable.getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  }
  async up(): Promise<void> {
    this.#ask("up");
    this.running = true;
  }
  async down(): Promise<void> {
    this.#ask("down");
    this.running = false;
  }
  async setMtu(mtu: number): Promise<void> {
    this.#ask("setMtu", mtu);
    if (mtu > this.maxMtu) throw new VirtioFault("INVALID", `mtu ${mtu}`, { device: this.name });
    this.mtu = mtu;
  }
  async setMac(mac: string): Promise<void> {
    this.#ask("setMac", mac);
    this.mac = mac;
  }
  async setPromiscuous(on: boolean): Promise<void> {
    this.#ask("setPromiscuous", on);
    this.promiscuous = on;
  }
  async setAllMulticast(on: boolean): Promise<void> {
    this.#ask("setAllMulticast", on);
    this.allMulticast = on;
  }
  async setUnicast(): Promise<void> {}
  async setMulticast(addresses: readonly string[]): Promise<void> {
    this.groups = addresses;
  }
  async addVlan(): Promise<void> {}
  async removeVlan(): Promise<void> {}
  async setCapability(capability: InterfaceCapability, on: boolean): Promise<void> {
    this.#ask("setCapability", InterfaceCapability[capability], on);
  }
  async setCoalescing(_: "receive" | "transmit", __: Coalescing): Promise<void> {}
  onLinkChange(listener: (up: boolean) => void): () => void {
    this.listeners.add(listener);
    return () => void this.listeners.delete(listener);
  }
  capture(listener: (frame: CapturedFrame) => void): () => void {
    this.#captures.add(listener);
    return () => void this.#captures.delete(listener);
  }
  /** Captures that run. */
  get captures(): number {
    return this.#captures.size;
  }
  allocate(): Frame | null {
    return null;
  }
  release(): void {}
  receiveBurst(): number {
    return 0;
  }
  transmitBurst(): number {
    return 0;
  }
  async suspend(): Promise<void> {}
  async resume(): Promise<void> {}
  async detach(): Promise<void> {}
}

/** A wire that nobody is at the other end of; `sent` has what was said on it. */
export class SilentWire {
  readonly sent: Uint8Array[] = [];

  send(bytes: Uint8Array, offset: number, length: number): boolean {
    this.sent.push(bytes.slice(offset, offset + length));
    return true;
  }
}

/** A shell on a machine with one network interface. */
export interface NetShell extends TestShell {
  readonly vtnet: FakeInterface;
  /** Runs a line while time passes, a millisecond a turn. @returns what came of it, and how many milliseconds it took */
  readonly timed: (
    line: string,
    signal?: AbortSignal,
  ) => Promise<{ status: number; out: string; err: string; ms: number }>;
}

/** Interfaces on a wire: the gateway's network, or one of the test's. */
export async function netShell(
  wire: NetBackend | SilentWire = new GatewayBackend(),
  units = 1,
): Promise<NetShell> {
  const machine = new FakeMachine(
    Array.from({ length: units }, (_, i) => pciFunction(i + 1, { device: 0x1041 })),
  );
  const interfaces: FakeInterface[] = [];
  const driver: Driver<Attached> = {
    ...{ name: "vtnet", description: "VirtIO Networking Adapter", types: [1], features: [] },
    ...{ tunables: [], options: {} },
    async attach(_: VirtioDevice, { name, publish }) {
      const vtnet = new FakeInterface(name, machine, wire);
      publish(vtnet);
      interfaces.push(vtnet);
      return vtnet;
    },
  };
  const kernelModule = {
    ...{ file: "if_vtnet", name: "vtnet", version: 1, depends: ["virtio"] },
    ...{ drivers: [driver], busDrivers: [] },
  };
  const modules = { ...fakeModules(), if_vtnet: async () => ({ kernelModule }) };
  const shell = await testShell({ machine, modules });
  const [vtnet] = interfaces;
  if (vtnet === undefined) throw new Error("no interface");
  if (!(wire instanceof SilentWire)) {
    wire.deliver = (bytes, offset, length) => {
      vtnet.receive(bytes.slice(offset, offset + length));
      return true;
    };
    wire.connect?.(machine.tasks);
  }
  onTestFinished(() => shell.shell.close());
  const timed: NetShell["timed"] = async (line, signal) => {
    const from = machine.time;
    let running = true;
    const result = shell.run(line, signal).finally(() => {
      running = false;
    });
    for (let turns = 0; running && turns < 100_000; turns++) {
      machine.pass(1);
      // Streams and tasks take a few turns of microtasks.
      for (let i = 0; i < 10; i++) await Promise.resolve();
      if (turns % 16 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    return { ...(await result), ms: machine.time - from };
  };
  return { ...shell, vtnet, timed };
}
