// What a `net` specification means to QEMU: the properties of a virtio-net-pci and of the netdev behind it, or a refusal.
import type { NetOptions } from "@virtio/core";
import { NetFeature } from "@virtio/core/net";
import {
  type Check,
  checkOptions,
  commonChecks,
  commonProperties,
  type FeatureTable,
  featureProperties,
  fixed,
  type Properties,
  type Refuse,
  refuseFor,
  whole,
} from "./device-properties.js";
import { findSocket } from "./image.js";
import type { KindPlan } from "./plan.js";

/** A netdev in QEMU's own words, for what has no name here: `{ type: "hubport", hubid: 0 }`. Its `id` is given by the machine. */
export interface QemuNetdev {
  readonly type: string;
  readonly [option: string]: unknown;
}

/** What a network device of QEMU's takes. */
export interface QemuNetOptions extends Omit<NetOptions, "backend"> {
  /** Besides those of every machine: `wire`, the frames are this process's (`machine.wire`), and a netdev of QEMU's. */
  readonly backend?: NetOptions["backend"] | "wire" | QemuNetdev | undefined;
}

/** A network device of QEMU's. */
export interface QemuNetSpec extends QemuNetOptions {
  readonly kind: "net";
}

/** A network device for `qemu({ devices: [net({ queues: 2, backend: "tap:tap0" })] })`. */
export function net(options: QemuNetOptions = {}): QemuNetSpec {
  return { kind: "net", ...options };
}

/** Descriptors of QEMU's receive queues, and the only number that its transmit queues can have. */
const QUEUE_SIZE = 256;

const checks: Readonly<Record<string, Check>> = {
  mac: (value) =>
    typeof value === "string" && /^[\da-f][02468ace](:[\da-f]{2}){5}$/i.test(value)
      ? null
      : "is not the MAC address of one station, such as 52:54:00:12:34:56",
  backend: (value) =>
    (typeof value === "object" && value !== null && "type" in value) ||
    (typeof value === "string" &&
      /^(gateway|loop|wire|(pcap|stream):.+|tap:[^\s/]{1,15})$/s.test(value))
      ? null
      : "is not one of gateway, loop, pcap:FILE, stream:SOCKET, tap:IF, wire, or a netdev of QEMU's",
  queues: whole(1, 256),
  mtu: whole(68, 65535),
  queueSize: fixed(QUEUE_SIZE, "which QEMU's queues have"),
  ...commonChecks,
};

const lower = (...names: readonly (keyof typeof NetFeature)[]): Readonly<Record<string, string>> =>
  Object.fromEntries(names.map((name) => [name, name.toLowerCase()]));

/** Features of frames that are not whole: QEMU offers them to a tap alone, which takes headers. */
const offloads = lower(
  ...(["CSUM", "GUEST_CSUM", "GSO", "GUEST_TSO4", "GUEST_TSO6", "GUEST_ECN", "GUEST_UFO"] as const),
  ...(["HOST_TSO4", "HOST_TSO6", "HOST_ECN", "HOST_UFO"] as const),
);

/** Features of the network device, as QEMU has them for `spec`. */
function featuresFor(spec: QemuNetSpec): FeatureTable {
  return {
    type: "network device",
    names: NetFeature,
    switches: {
      ...lower("MRG_RXBUF", "STATUS", "CTRL_VQ", "CTRL_RX", "CTRL_VLAN", "CTRL_RX_EXTRA"),
      ...lower("CTRL_MAC_ADDR", "CTRL_GUEST_OFFLOADS", "GUEST_ANNOUNCE", "MQ", "RSS"),
      ...offloads,
      HASH_REPORT: "hash",
      RSC_EXT: "guest_rsc_ext",
    },
    always: ["MAC"],
    special(name, on, refuse) {
      const whole = typeof spec.backend !== "object" && !spec.backend?.startsWith("tap:");
      if (on && whole && (name in offloads || name === "HASH_REPORT"))
        refuse("QEMU offers it to a tap alone (backend=tap:IF)");
      if (name === "MTU" && on !== (spec.mtu !== undefined))
        refuse("QEMU offers it just when there is an MTU to advise (mtu=N)");
      if (name === "SPEED_DUPLEX") return on ? { speed: 10_000, duplex: "full" } : {};
      return name === "MTU" ? {} : undefined;
    },
  };
}

/**
 * Properties of the virtio-net-pci that does what `spec` says. Nothing is left out in silence.
 * @param device how messages call it: `net0`
 * @throws VirtioFault INVALID for a key, a value or a feature that QEMU cannot honour
 */
export function netProperties(spec: QemuNetSpec, device: string): Properties {
  const refuse = refuseFor(device);
  checkOptions(spec, checks, refuse);
  const { queues = 1, backend = "gateway" } = spec;
  if (queues > 1 && typeof backend === "string" && !backend.startsWith("tap:"))
    refuse(`queues=${queues}: QEMU gives several pairs of queues to a tap alone (backend=tap:IF)`);
  return {
    // Its option ROM would be one more BAR, and one more file to be missing.
    romfile: "",
    mq: queues > 1,
    ...commonProperties(spec, refuse),
    ...(spec.mac === undefined ? {} : { mac: spec.mac }),
    ...(spec.mtu === undefined ? {} : { host_mtu: spec.mtu }),
    ...featureProperties(spec.features ?? {}, featuresFor(spec), refuse),
  };
}

/** What is behind a network device: a netdev of QEMU's without its id, or a socket to this process. */
type Wire = QemuNetdev | "wire" | "loop";

/**
 * The wire of a network device.
 * @throws VirtioFault INVALID for one that QEMU does not have
 */
function wireOf({ backend = "gateway", queues = 1 }: QemuNetSpec, refuse: Refuse): Wire {
  if (typeof backend === "object" || backend === "wire" || backend === "loop") return backend;
  if (backend === "gateway") return { type: "user" };
  const [kind = "", name = ""] = [
    backend.slice(0, backend.indexOf(":")),
    backend.slice(backend.indexOf(":") + 1),
  ];
  if (kind === "pcap") return refuse("QEMU plays no capture files: the embedded machine does");
  if (kind === "stream")
    return { type: "stream", server: false, addr: { type: "unix", path: name } };
  const several = queues > 1 ? { queues } : {};
  return { type: "tap", ifname: name, script: "no", downscript: "no", ...several };
}

/** @throws VirtioFault INVALID, NOT_FOUND */
export async function planNet(spec: QemuNetSpec, id: string, cwd: string): Promise<KindPlan> {
  const { backend } = spec;
  const label = typeof backend === "string" ? `net,backend=${backend}` : id;
  const netdev = netdevId(id);
  const device = { driver: "virtio-net-pci", netdev, ...netProperties(spec, label) };
  const wire = wireOf(spec, refuseFor(label));
  const stream = typeof backend === "string" && backend.startsWith("stream:");
  if (stream) await findSocket(backend.slice("stream:".length), { device: label, cwd });
  const options = (fd = ""): object =>
    // Connected at once. A netdev `stream` is only some time after the launch, even to a descriptor, and loses what is sent before.
    typeof wire === "object" ? wire : { type: "socket", fd };
  return {
    label,
    device,
    inherits: typeof wire === "string" ? ["socket"] : [],
    before: ([fd]) => [{ kind: "netdev", options: { ...options(fd), id: netdev } }],
    loop: wire === "loop",
    stream: stream ? netdev : null,
  };
}

/** QEMU's id of what is behind a network device: NIC and netdev share one list of names. */
const netdevId = (id: string): string => `${id}-wire`;
