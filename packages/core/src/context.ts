// The defaults that let a driver work without the umbrella.
import type { Attached } from "./attached.js";
import type { AttachContext, Driver, DriverContext } from "./driver.js";
import { SysctlTree } from "./sysctl.js";
import { resolveTunables, type TunableSpec } from "./tunables.js";

/**
 * The whole context of an attach: what was given, and for the rest unit 0, one CPU, the factory's options as tunables, a private
 * sysctl tree and a log that goes nowhere.
 */
export function attachContext(
  driver: Driver<Attached>,
  busDriver: { readonly name: string; readonly tunables: readonly TunableSpec[] },
  given: Partial<AttachContext> = {},
): AttachContext {
  const own = (name: string, unit: number): Pick<DriverContext, "sysctl" | "log" | "verbose"> => ({
    sysctl: new SysctlTree().node("dev", "").node(name, "").node(String(unit), ""),
    log: () => {},
    verbose: () => {},
  });
  const unit = given.unit ?? 0;
  const transport = given.transport ?? {
    name: `${busDriver.name}${unit}`,
    unit,
    tunables: resolveTunables({
      prefix: busDriver.name.replace("_", "."),
      specs: busDriver.tunables,
      unit,
    }),
    ...own(busDriver.name, unit),
  };
  return {
    name: `${driver.name}${unit}`,
    unit,
    cpus: 1,
    announce: () => {},
    publish: () => () => {},
    tunables: resolveTunables({
      prefix: driver.name,
      specs: driver.tunables,
      unit,
      options: driver.options,
    }),
    ...own(driver.name, unit),
    ...given,
    transport,
  };
}
