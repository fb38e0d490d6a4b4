// What a `console` specification means to QEMU: the properties of a virtio-serial-pci and of its ports, or a refusal.
import type { ConsoleOptions, ConsoleSpec } from "@virtio/core";
import { ConsoleFeature } from "@virtio/core/console";
import {
  type Check,
  checkOptions,
  commonChecks,
  commonProperties,
  type FeatureTable,
  featureProperties,
  fixed,
  oneOf,
  type Properties,
  refuseFor,
  whole,
} from "./device-properties.js";
import type { Part } from "./parts.js";
import type { KindPlan } from "./plan.js";

/** A console for `qemu({ devices: [consoleDevice({ ports: 2 })] })`. */
export function consoleDevice(options: ConsoleOptions = {}): ConsoleSpec {
  return { kind: "console", ...options };
}

/** Descriptors of QEMU's queues for bytes; those for control messages have 32. */
const QUEUE_SIZE = 128;

const checks: Readonly<Record<string, Check>> = {
  ports: whole(1, 31),
  backend: oneOf("loop", "host"),
  ...commonChecks,
  queueSize: fixed(QUEUE_SIZE, "which QEMU's queues have"),
};

/** Features of the console, as QEMU has them for `spec`. */
function featuresFor({ ports = 1 }: ConsoleSpec): FeatureTable {
  return {
    type: "console",
    names: ConsoleFeature,
    switches: { EMERG_WRITE: "emergency-write" },
    always: [],
    special(name, on, refuse) {
      if (name !== "MULTIPORT") return undefined;
      if (on !== ports > 1) refuse("QEMU offers it just when there are several ports (ports=N)");
      return {};
    },
  };
}

/**
 * Properties of the virtio-serial-pci that does what `spec` says. Nothing is left out in silence.
 * @param device how messages call it: `console0`
 * @throws VirtioFault INVALID for a key, a value or a feature that QEMU cannot honour
 */
export function consoleProperties(spec: ConsoleSpec, device: string): Properties {
  const refuse = refuseFor(device);
  checkOptions(spec, checks, refuse);
  return {
    max_ports: spec.ports ?? 1,
    ...commonProperties(spec, refuse),
    ...featureProperties(spec.features ?? {}, featuresFor(spec), refuse),
  };
}

/** @throws VirtioFault INVALID */
export function planConsole(spec: ConsoleSpec, id: string): KindPlan {
  const { ports = 1, backend = "loop" } = spec;
  const device = { driver: "virtio-serial-pci", ...consoleProperties(spec, id) };
  const numbers = Array.from({ length: ports }, (_, nr) => nr);
  const wire = (nr: number): string => `${id}-wire${nr}`;
  return {
    label: id,
    device,
    inherits: numbers.map(() => "socket"),
    before: (fds) =>
      numbers.map((nr): Part => {
        return { kind: "chardev", options: { backend: "socket", id: wire(nr), fd: fds[nr] } };
      }),
    after: numbers.map((nr) => portOf(id, nr, wire(nr))),
    loop: backend === "loop",
  };
}

/** Port 0 is a console; the others have names, by which a guest finds them. */
function portOf(id: string, nr: number, chardev: string): Part {
  const driver =
    nr === 0 ? { driver: "virtconsole" } : { driver: "virtserialport", name: `port${nr}` };
  return {
    kind: "device",
    options: { ...driver, id: `${id}-port${nr}`, bus: `${id}.0`, nr, chardev },
  };
}
