// The kernel environment, kenv(2): what the loader and --set left, which tunables are read from.
import { type KernelModule, resolveTunables, type TunableSpec, VirtioFault } from "@virtio/core";
import type { Assignment } from "./loader-conf.js";

/** Names and values in the order in which they were first set; a later setting of a name wins. */
export class KernelEnvironment {
  readonly #values = new Map<string, string>();
  readonly #origins = new Map<string, string>();

  constructor(assignments: readonly Assignment[] = []) {
    for (const assignment of assignments) this.set(assignment);
  }

  /** What resolveTunables looks in: a live view. */
  get values(): ReadonlyMap<string, string> {
    return this.#values;
  }

  get(name: string): string | undefined {
    return this.#values.get(name);
  }

  /** Who set it: `loader.conf:3`. The name itself when nobody did. */
  origin(name: string): string {
    return this.#origins.get(name) ?? name;
  }

  /** Whether a switch such as boot_verbose is on: YES (in any case), or 1. */
  enabled(name: string): boolean {
    return /^(yes|1)$/i.test(this.get(name) ?? "");
  }

  set({ name, value, origin }: Assignment): void {
    this.#values.set(name, value);
    this.#origins.set(name, origin);
  }

  /** Whether it was there. */
  unset(name: string): boolean {
    this.#origins.delete(name);
    return this.#values.delete(name);
  }

  /**
   * Refuses what was set for the drivers of a module and means nothing to them: a tunable they do not have, or a value out of range.
   * @throws VirtioFault INVALID: `loader.conf:3: hw.vtblk.no_idnt: vtblk has no such tunable (it has: no_ident, writecache_mode)`
   */
  check(module: KernelModule): void {
    for (const driver of module.drivers) this.#check(driver.name, driver.name, driver.tunables);
    for (const { name, tunables } of module.busDrivers)
      this.#check(name, tunablePrefix(name), tunables);
  }

  #check(driver: string, prefix: string, specs: readonly TunableSpec[]): void {
    for (const [name, value] of this.#values) {
      if (!name.startsWith(`hw.${prefix}.`)) continue;
      const [, unit, knob = ""] =
        /^(?:(\d+)\.)?(.*)$/.exec(name.slice(`hw.${prefix}.`.length)) ?? [];
      const refuse = (what: string): never => {
        throw new VirtioFault("INVALID", `${this.origin(name)}: ${what}`);
      };
      if (!specs.some((spec) => spec.name === knob))
        refuse(
          `${name}: ${driver} has no such tunable (it has: ${specs.map((spec) => spec.name).join(", ") || "none"})`,
        );
      const environment = new Map([[name, value]]);
      const tunables = resolveTunables({ prefix, specs, unit: Number(unit ?? 0), environment });
      try {
        tunables.number(knob);
      } catch (error) {
        if (error instanceof VirtioFault) refuse(error.message);
        throw error;
      }
    }
  }
}

/** `virtio.pci` of `hw.virtio.pci.disable_msix`, for the bus driver virtio_pci. */
export function tunablePrefix(busDriver: string): string {
  return busDriver.replace("_", ".");
}
