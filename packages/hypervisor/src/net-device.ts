// The network device of the embedded machine: how one says which.
import { type NetBackendName, type NetOptions, type NetSpec, VirtioFault } from "@virtio/core";
import { NetFeature } from "@virtio/core/net";
import { formatMac, parseMac } from "@virtio/packets";
import type { DeviceKind } from "./device-kind.js";
import { NetModel } from "./models/net.js";
import { type NetCharacteristics, netModelFeatures } from "./models/net-config.js";
import type { NetLies } from "./models/net-lies.js";
import { NetPort } from "./models/net-port.js";
import type { NetBackend, OpenNet } from "./net-backend.js";
import { GatewayBackend } from "./net-backends/gateway.js";
import { LoopbackBackend } from "./net-backends/loopback.js";

/** A network device of the embedded machine. */
export interface EmbeddedNetSpec extends EmbeddedNetOptions {
  readonly kind: "net";
}

/** What only the embedded machine's network device takes besides. */
export interface EmbeddedNetOptions extends Omit<NetOptions, "backend">, NetCharacteristics {
  /** A wire, or its name. Default gateway. */
  readonly backend?: NetBackend | NetBackendName | undefined;
  /** The device's back, to be looked at. */
  readonly port?: NetPort | undefined;
  /** A device that lies; for tests of drivers. */
  readonly lies?: NetLies | undefined;
}

/** A network device: `embedded({ devices: [net({ queues: 2 })] })`. */
export function net(options: EmbeddedNetOptions = {}): EmbeddedNetSpec {
  return { kind: "net", ...options };
}

/** The first device's address, QEMU's; each further device has the next. */
const FIRST_MAC = "52:54:00:12:34:56";

/** {@inheritDoc DeviceKind} */
export const netKind: DeviceKind<NetSpec | EmbeddedNetSpec> = {
  hasFeature: (name) => netModelFeatures.includes(NetFeature[name as keyof typeof NetFeature]),
  refuse({ features, legacy = "off" }, refuse) {
    if (features?.["GSO"] === true && legacy === "off")
      refuse("offers gso on the legacy interface alone: it needs legacy=on or transitional");
  },
  async make(spec, { name, ordinal, openNet }) {
    const embedded: EmbeddedNetSpec = spec;
    const backend = await wireOf(embedded, openNet);
    try {
      return new NetModel({
        name,
        backend,
        mac: embedded.mac ?? nextMac(ordinal),
        queues: embedded.queues ?? 1,
        mtu: embedded.mtu,
        features: embedded.features ?? {},
        characteristics: embedded,
        port: embedded.port ?? new NetPort(),
        lies: embedded.lies ?? {},
      });
    } catch (error) {
      await backend.close();
      throw error;
    }
  },
};

function nextMac(ordinal: number): string {
  const mac = parseMac(FIRST_MAC);
  mac[5] = (mac[5] as number) + ordinal;
  return formatMac(mac);
}

async function wireOf(
  { backend = "gateway" }: EmbeddedNetSpec,
  open: OpenNet | undefined,
): Promise<NetBackend> {
  if (typeof backend !== "string") return backend;
  if (backend === "gateway") return new GatewayBackend();
  if (backend === "loop") return new LoopbackBackend();
  if (open === undefined)
    throw new VirtioFault(
      "UNSUPPORTED",
      `backend=${backend}: this machine was made without a way to open it`,
    );
  return open(backend);
}
