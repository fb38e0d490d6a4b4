// Loader tunables (FreeBSD's TUNABLE_INT_FETCH): unit beats global beats the factory's option beats the declared default.
import { VirtioFault } from "./errors.js";

/** One tunable of a driver, as data. */
export interface TunableSpec {
  readonly name: string;
  readonly default: number;
  readonly min: number;
  readonly max: number;
  readonly description: string;
}

/** The tunables of one unit of one driver. */
export interface Tunables {
  /** The value in force. @throws VirtioFault INVALID when the name is not declared, or what was set is no whole number in range. */
  number(name: string): number;
}

/** Where {@link resolveTunables} looks. */
export interface TunableSources {
  /** `vtblk` in `hw.vtblk.writecache_mode`; `virtio.pci` for the PCI transport. */
  readonly prefix: string;
  readonly specs: readonly TunableSpec[];
  readonly unit: number;
  /** Values given to the driver's factory. */
  readonly options?: Readonly<Record<string, number>>;
  /** The kernel environment: kenv(1). */
  readonly environment?: ReadonlyMap<string, string>;
}

/** The tunables of one unit, looked up at each call. */
export function resolveTunables({
  prefix,
  specs,
  unit,
  options = {},
  environment,
}: TunableSources): Tunables {
  return {
    number(name) {
      const spec = specs.find((s) => s.name === name);
      if (spec === undefined)
        throw new VirtioFault("INVALID", `hw.${prefix}.${name}: no such tunable`);
      const key = [`hw.${prefix}.${unit}.${name}`, `hw.${prefix}.${name}`].find((k) =>
        environment?.has(k),
      );
      const set = key === undefined ? options[name] : environment?.get(key);
      if (set === undefined) return spec.default;
      const text = String(set).trim();
      const value = text === "" ? Number.NaN : Number(text);
      if (!Number.isInteger(value) || value < spec.min || value > spec.max)
        throw new VirtioFault(
          "INVALID",
          `${key ?? `option ${name}`}: '${text}' is not a whole number from ${spec.min} to ${spec.max}`,
        );
      return value;
    },
  };
}
