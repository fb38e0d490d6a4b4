// A virtio device as a PCI function (virtio 1.4 §4.1): its configuration space, its BARs and its interrupts, put together.
import type {
  GuestMemory,
  PciAddress,
  ReservedFeature,
  TaskQueue,
  VirtioFault,
} from "@virtio/core";
import {
  INITIATE_FUNCTION_LEVEL_RESET,
  PciAdvancedFeatures,
  PciCapability,
  PciCommand,
  VirtioCapability,
} from "@virtio/core/pci";
import type { DeviceModel, ModelHost } from "../device-model.js";
import { deviceRules } from "../rules/device-rules.js";
import type { ObservedFunction } from "../rules/function-rules.js";
import type { ObservedLegacy } from "../rules/legacy-rules.js";
import type { RuleBook } from "../rules/rule-book.js";
import { ConfigWindow } from "./config-window.js";
import {
  type BarSpec,
  type CapabilitySpec,
  PciConfiguration,
  placeCapabilities,
} from "./configuration.js";
import type { Distortion } from "./distortion.js";
import { FunctionInterrupts } from "./function-interrupts.js";
import { LegacyInterface } from "./legacy-interface.js";
import { ModernInterface } from "./modern-interface.js";
import { msiCapability } from "./msi.js";
import type { PciRoot } from "./root.js";
import { type StructureLayout, structureLayout } from "./structure-layout.js";
import {
  LEGACY_BAR,
  MSIX_BAR,
  msixCapability,
  observedCapabilities,
  resetCapability,
  STRUCTURES_BAR,
  virtioCapabilities,
  virtioIdentity,
} from "./virtio-configuration.js";
import { type InterfaceKind, VirtioDevice } from "./virtio-device.js";

/** How a function is made. */
export interface VirtioFunctionOptions {
  readonly model: DeviceModel;
  readonly kind: InterfaceKind;
  readonly root: PciRoot;
  readonly memory: GuestMemory;
  /** The model's lane. */
  readonly tasks: TaskQueue;
  readonly outside: ModelHost["outside"];
  /** Descriptors of each queue; a power of two where rings are split. */
  readonly queueSize: number;
  /** MSI-X vectors; 0: no MSI-X capability. */
  readonly vectors: number;
  /** Whether the function has an MSI capability. */
  readonly msi: boolean;
  /** Queue and negotiation bits that are offered, those of the legacy interface among them. */
  readonly reservedFeatures: readonly ReservedFeature[];
  readonly distort: Distortion;
  readonly rules: RuleBook | null;
}

/** Bytes between two doorbells. */
const NOTIFY_MULTIPLIER = 4;

/** One virtio device on the embedded machine's PCI root. */
export class VirtioFunction {
  readonly address: PciAddress;
  readonly #root: PciRoot;
  readonly #device: VirtioDevice;

  /** @throws VirtioFault NO_SPACE without a free slot, INVALID for a distortion that does not fit */
  constructor(options: VirtioFunctionOptions) {
    const { model, kind, root, distort } = options;
    const interrupts = new FunctionInterrupts(options.vectors, (at, data) =>
      root.message(at, data),
    );
    const device = new VirtioDevice({
      ...options,
      shared: root.memory.shared,
      interrupts,
      // Both are asked for only once a driver is at the registers.
      mastering: () => (configuration.command & PciCommand.BUS_MASTER) !== 0,
      book: options.rules,
      onLegacyBroken: (what) => rules?.legacy.broken(what),
    });
    const { configLength = model.config.length, notifyMultiplier = NOTIFY_MULTIPLIER } = distort;
    const layout = structureLayout(distort.structures ?? "memory", configLength, notifyMultiplier);
    const usual = usualCapabilities(options, layout);
    const capabilities = placeCapabilities(distort.capabilities?.(usual) ?? usual);
    const rules =
      options.rules === null
        ? null
        : deviceRules(
            options.rules,
            observed(options, device),
            {
              name: model.name,
              modernId: kind === "modern",
              capabilities: observedCapabilities(capabilities),
            },
            () => ({ enabled: interrupts.msixEnabled, vectors: options.vectors }),
          );

    const bars: BarSpec[] = [];
    if (kind !== "modern")
      bars.push({ index: LEGACY_BAR, kind: "io", space: new LegacyInterface(device, rules) });
    if (interrupts.msix !== null)
      bars.push({ index: MSIX_BAR, kind: "memory32", space: interrupts.msix });
    if (kind !== "legacy")
      bars.push({
        index: STRUCTURES_BAR,
        kind: layout.space === "io" ? "io" : "memory64",
        space: new ModernInterface(device, layout, rules),
      });
    const identity = { ...virtioIdentity(model.type, kind, model.classCode), ...distort.identity };
    const configuration = new PciConfiguration(identity, bars, capabilities);
    const find = (id: PciCapability, type?: VirtioCapability): number | null =>
      capabilities.find((c) => c.id === id && (type === undefined || c.body[1] === type))?.at ??
      null;
    const resetAt = find(PciCapability.ADVANCED_FEATURES);
    const windowAt = find(PciCapability.VENDOR, VirtioCapability.PCI);
    const msixAt = find(PciCapability.MSIX);
    const window =
      windowAt === null
        ? null
        : new ConfigWindow(configuration, windowAt, bars, (bar, offset, length) =>
            rules?.layout.window(bar, offset, length),
          );
    configuration.onRead = (offset, width) => {
      rules?.layout.read(offset, width);
      window?.read(offset, width);
    };
    configuration.onWrite = (offset, width, value) => {
      const control = resetAt === null ? -1 : resetAt + PciAdvancedFeatures.CONTROL - offset;
      const bits = control < 0 || control >= width ? 0 : value >>> (8 * control);
      if ((bits & INITIATE_FUNCTION_LEVEL_RESET) !== 0) {
        device.writeStatus(0);
        configuration.reset();
      }
      rules?.layout.write(offset, width, configuration.writable(offset));
      if (msixAt !== null) interrupts.controlMsix(configuration.peek(msixAt + 2, 2));
      interrupts.changed();
      window?.write(offset, width);
    };
    this.#root = root;
    this.#device = device;
    this.address = root.add(configuration);
    const { device: slot } = this.address;
    interrupts.connect(configuration, find(PciCapability.MSI), rules?.interrupts ?? null, (high) =>
      root.setLine(slot, high),
    );
  }

  /** The machine is closed: the device does nothing more, what it was doing ends, and its backend is closed. */
  close(): Promise<void> {
    return this.#device.stop();
  }

  /** The function is taken out of its slot, whatever its driver does, and closed. */
  remove(fault: VirtioFault): Promise<void> {
    this.#root.remove(this.address, fault);
    return this.#device.stop();
  }
}

/** Capabilities of a function: its structures, then its interrupts. */
function usualCapabilities(
  { kind, vectors, msi }: VirtioFunctionOptions,
  layout: StructureLayout,
): readonly CapabilitySpec[] {
  return [
    ...(kind === "legacy" ? [] : virtioCapabilities(layout)),
    ...(vectors === 0 ? [] : [msixCapability(vectors)]),
    ...(msi ? [msiCapability] : []),
    resetCapability,
  ];
}

/** The device as the rules look at it. */
function observed(
  { memory }: VirtioFunctionOptions,
  device: VirtioDevice,
): ObservedFunction & ObservedLegacy {
  const { model } = device;
  return {
    name: model.name,
    type: model.type,
    memory,
    offered: device.offered,
    legacyOffered: [device.legacyOffered],
    prerequisites: model.prerequisites,
    queueSize: device.queueSize,
    configLength: model.config.length,
    configGate: (offset) => model.configGate(offset),
    accepted: device.accepted,
    get status() {
      return device.status;
    },
  };
}
