// The console of the embedded machine: how one says which.
import { type ConsoleOptions, type ConsoleSpec, VirtioFault } from "@virtio/core";
import { ConsoleFeature } from "@virtio/core/console";
import type { DeviceKind } from "./device-kind.js";
import { ConsoleModel } from "./models/console.js";
import { consoleModelFeatures } from "./models/console-config.js";
import { ConsoleHost } from "./models/console-host.js";
import type { ConsoleLies } from "./models/console-lies.js";

/** A console of the embedded machine. */
export interface EmbeddedConsoleSpec extends EmbeddedConsoleOptions {
  readonly kind: "console";
}

/** What only the embedded machine's console takes besides. */
export interface EmbeddedConsoleOptions extends ConsoleOptions {
  /** The other ends of the ports, which are then the owner's: in place of `ports` and `backend`. */
  readonly host?: ConsoleHost | undefined;
  /** Ports that there can be, those that are plugged in later included; above 1 the device has MULTIPORT. Default: as many as there are. */
  readonly maxPorts?: number | undefined;
  /** A device that lies; for tests of drivers. */
  readonly lies?: ConsoleLies | undefined;
}

/** A console: `embedded({ devices: [consoleDevice({ host })] })`. */
export function consoleDevice(options: EmbeddedConsoleOptions = {}): EmbeddedConsoleSpec {
  return { kind: "console", ...options };
}

/** {@inheritDoc DeviceKind} */
export const consoleKind: DeviceKind<ConsoleSpec | EmbeddedConsoleSpec> = {
  hasFeature: (name) =>
    consoleModelFeatures.includes(ConsoleFeature[name as keyof typeof ConsoleFeature]),
  refuse(spec, refuse) {
    const { host, ports, backend }: EmbeddedConsoleSpec = spec;
    if (host !== undefined && (ports !== undefined || backend === "loop"))
      refuse("takes the ports from the host that is given: no ports=, no backend=loop");
    if (host === undefined && backend === "host")
      refuse("has backend=host only for a host that is given: consoleDevice({ host })");
  },
  async make(spec, { name }) {
    const { host, ports = 1, maxPorts, features = {}, lies = {} }: EmbeddedConsoleSpec = spec;
    if (host?.model !== null && host?.model !== undefined)
      throw new VirtioFault("BUSY", `${name}: the host has a device`);
    return new ConsoleModel({
      name,
      host: host ?? loops(ports),
      maxPorts,
      features,
      lies,
    });
  },
};

/** Ports that give back what they get; the first is a console. */
const loops = (count: number): ConsoleHost =>
  new ConsoleHost(
    Array.from({ length: count }, (_, id) => ({ id, loop: true, console: id === 0 })),
  );
