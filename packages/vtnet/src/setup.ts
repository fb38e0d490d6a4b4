// What a person set, and how the device is told: at each init, and at changes in between (vtnet_init_locked, vtnet_rx_filter).
import {
  type Coalescing,
  type ConfigSpace,
  type FeatureSet,
  type InterfaceCapability,
  type Log,
  ReservedFeature,
  VirtioFault,
} from "@virtio/core";
import { MAC_SIZE, NetFeature } from "@virtio/core/net";
import { formatMac } from "@virtio/packets";
import type { Commands } from "./commands.js";
import { type Features, featuresFor } from "./features.js";
import { Filters } from "./filters.js";
import type { Settled } from "./settle.js";

/** What is needed to set a device up. */
export interface SetupOptions {
  /** Null: there is no control queue. */
  readonly commands: Commands | null;
  readonly config: ConfigSpace;
  readonly settled: Settled;
  /** What is negotiated. */
  readonly features: FeatureSet<Features>;
  /** The address that the interface begins with. */
  readonly mac: Uint8Array;
  readonly enabled: Set<InterfaceCapability>;
  readonly log: Log;
}

/** What the device refuses is a line of the log, as in FreeBSD. Every call rejects with TIMED_OUT, or what broke the device. */
export class Setup {
  /** What is negotiated now. */
  features: FeatureSet<Features>;
  /** The interface's address. */
  mac: Uint8Array;
  readonly enabled: Set<InterfaceCapability>;
  readonly filters: Filters = new Filters();
  readonly coalescing: Map<"receive" | "transmit", Coalescing> = new Map();
  readonly #commands: Commands | null;
  readonly #config: ConfigSpace;
  readonly #settled: Settled;
  readonly #log: Log;

  constructor(options: SetupOptions) {
    this.features = options.features;
    this.mac = options.mac;
    this.enabled = options.enabled;
    this.#commands = options.commands;
    this.#config = options.config;
    this.#settled = options.settled;
    this.#log = options.log;
  }

  /** What is to be negotiated, by what is switched on. */
  get wanted(): FeatureSet<Features> {
    return featuresFor(this.#settled.features, this.enabled);
  }

  /** A command that the device may refuse: a line of the log then. False: it did. @throws VirtioFault any other */
  async attempt(message: string, command: () => Promise<void> | undefined): Promise<boolean> {
    try {
      await command();
      return true;
    } catch (error) {
      if (!(error instanceof VirtioFault) || error.code !== "IO") throw error;
      this.#log(message);
      return false;
    }
  }

  /** At each init, before the device has buffers. */
  async everything(): Promise<void> {
    const { mac } = this.#settled;
    if (this.setsMacByConfig) await this.writeMac();
    else if (this.setsMacByCommand && (mac === null || formatMac(mac) !== formatMac(this.mac)))
      await this.attempt("unable to set MAC address", () => this.#commands?.mac(this.mac));
    await this.#allFilters();
    for (const [direction, coalescing] of this.coalescing)
      await this.attempt("cannot set coalescing", () =>
        this.#commands?.coalescing(direction, coalescing),
      );
  }

  /** ADDR_SET is one of the commands that CTRL_RX permits (§5.1.9.5.2). */
  get setsMacByCommand(): boolean {
    return this.features.has(NetFeature.CTRL_MAC_ADDR) && this.features.has(NetFeature.CTRL_RX);
  }

  /** On the legacy interface the configuration can be written (§5.1.4.3), and is where there is no command. */
  get setsMacByConfig(): boolean {
    return (
      this.features.has(NetFeature.MAC) &&
      !this.features.has(ReservedFeature.VERSION_1) &&
      !this.setsMacByCommand
    );
  }

  async writeMac(): Promise<void> {
    for (let i = 0; i < MAC_SIZE; i++) await this.#config.write(i, 1, this.mac[i] as number);
  }

  /** All of them, at each init (vtnet_rx_filter). */
  async #allFilters(): Promise<void> {
    if (this.features.has(NetFeature.CTRL_RX)) {
      await this.modes();
      await this.tables();
    }
    if (this.features.has(NetFeature.CTRL_VLAN))
      for (const id of this.filters.vlans)
        await this.attempt(`cannot enable VLAN ${id} filter`, () => this.#commands?.vlan(id, true));
  }

  /** Whether the device took them. */
  async modes(): Promise<boolean> {
    const promiscuous = this.filters.promiscuous || this.filters.unicastOverflow;
    const allMulticast = this.filters.allMulticast || this.filters.multicastOverflow;
    const verb = (on: boolean): string => (on ? "enable" : "disable");
    const first = await this.attempt(`cannot ${verb(promiscuous)} promiscuous mode`, () =>
      this.#commands?.promiscuous(promiscuous),
    );
    const second = await this.attempt(`cannot ${verb(allMulticast)} all-multicast mode`, () =>
      this.#commands?.allMulticast(allMulticast),
    );
    return first && second;
  }

  async tables(): Promise<boolean> {
    const { tables, unicastOverflow, multicastOverflow } = this.filters;
    if (unicastOverflow)
      this.#log("more than 128 MAC addresses assigned, falling back to promiscuous mode");
    if (multicastOverflow)
      this.#log(
        "more than 128 multicast MAC addresses assigned, falling back to all-multicast mode",
      );
    if (tables === null) return true;
    return this.attempt("error setting host MAC filter table", () =>
      this.#commands?.macTables(tables),
    );
  }

  /** The device has the buffers of all pairs; now it may use them (vtnet_set_active_vq_pairs). */
  async pairs(): Promise<number> {
    const { pairs, hashing } = this.#settled;
    if (this.features.has(NetFeature.RSS) && hashing.tableLength > 0) {
      const spread = await this.attempt("cannot set up receive-side scaling", () =>
        this.#commands?.rss(pairs, hashing),
      );
      if (spread) return pairs;
    } else if (this.features.has(NetFeature.HASH_REPORT))
      await this.attempt("cannot set up hash reports", () => this.#commands?.hashReports(hashing));
    if (!this.features.has(NetFeature.MQ)) return 1;
    const set = await this.attempt(
      `cannot set active queue pairs to ${pairs}, falling back to 1 queue pair`,
      () => this.#commands?.pairs(pairs),
    );
    return set ? pairs : 1;
  }
}
