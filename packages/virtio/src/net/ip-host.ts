import { type NetworkInterface, VirtioFault } from "@virtio/core";
import type { Kernel } from "../kernel.js";
import { isLinkLocal } from "./interface-address.js";
import { Station } from "./station.js";

/** The IP host of one kernel: a station on each of its interfaces. */
export class IpHost {
  readonly #kernel: Kernel;
  readonly #stations = new WeakMap<NetworkInterface, Station>();

  constructor(kernel: Kernel) {
    this.#kernel = kernel;
  }

  get stations(): readonly Station[] {
    return this.#kernel.interfaces.map((each) => this.#on(each));
  }

  /** @throws VirtioFault NOT_FOUND: no such interface */
  station(name: string): Station {
    return this.#on(this.#kernel.interface(name));
  }

  /**
   * The station that reaches an address, and its address to send from.
   * @param zone - the interface that was named with it; null: none was
   * @throws VirtioFault NOT_FOUND, INVALID: a link-local address without its interface
   */
  routeTo(
    destination: string,
    zone: string | null,
  ): { readonly station: Station; readonly source: string } {
    if (zone === null && isLinkLocal(destination) && this.stations.length !== 1)
      throw new VirtioFault(
        "INVALID",
        `${destination}: which interface? Write ${destination}%vtnet0`,
      );
    const stations = zone === null ? this.stations : [this.station(zone)];
    const up = stations.filter((station) => station.interface.running);
    for (const station of up) {
      const source = station.has(destination) ? destination : station.sourceFor(destination);
      if (source !== null) return { station, source };
    }
    throw new VirtioFault(
      "NOT_FOUND",
      up.length === 0
        ? `${destination}: Network is down (ifconfig vtnet0 up, or dhclient vtnet0)`
        : `${destination}: No route to host`,
    );
  }

  #on(what: NetworkInterface): Station {
    const station = this.#stations.get(what) ?? new Station(what, this.#kernel.machine.tasks);
    this.#stations.set(what, station);
    return station;
  }
}
