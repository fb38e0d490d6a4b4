// The modern interface of a virtio device as registers: common configuration, ISR status, device configuration and doorbells
// (virtio 1.4 §4.1.4.3 to §4.1.4.6).
import { ReservedFeature } from "@virtio/core";
import { CommonConfig, NO_VECTOR } from "@virtio/core/pci";
import { hasBit } from "../feature-words.js";
import { allOnes, type Register, type RegisterSpace, RegisterTable } from "../registers.js";
import type { DeviceRules } from "../rules/device-rules.js";
import type { StructureLayout } from "./structure-layout.js";
import type { QueueState, VirtioDevice } from "./virtio-device.js";

/** What queue_notif_config_data adds to the queue's index, so that nobody takes one for the other. */
const NOTIF_CONFIG_DATA_BASE = 0x100;

/** The BAR of the virtio structures. */
export class ModernInterface implements RegisterSpace {
  readonly length: number;
  readonly #device: VirtioDevice;
  readonly #layout: StructureLayout;
  readonly #common: RegisterTable;
  readonly #rules: DeviceRules | null;
  #deviceFeatureSelect = 0;
  #driverFeatureSelect = 0;
  #queueSelect = 0;

  constructor(device: VirtioDevice, layout: StructureLayout, rules: DeviceRules | null) {
    this.length = layout.length;
    this.#device = device;
    this.#layout = layout;
    this.#rules = rules;
    this.#common = new RegisterTable(this.#commonRegisters());
  }

  read(offset: number, width: 1 | 2 | 4): number {
    const { isr, device, notify } = this.#layout;
    this.#accessed();
    if (offset < isr) return this.#commonRead(offset, width);
    if (offset < device)
      return offset === isr && width === 1 ? this.#device.interrupts.readIsr() : 0;
    return offset < notify ? this.#configRead(offset - device, width) : 0;
  }

  write(offset: number, width: 1 | 2 | 4, value: number): void {
    const { isr, device, notify } = this.#layout;
    this.#accessed();
    if (offset < isr) this.#commonWrite(offset, width, value);
    else if (offset >= notify) this.#doorbell(offset - notify, width, value);
    else if (offset >= device) this.#configWrite(offset - device, width, value);
  }

  #accessed(): void {
    this.#rules?.layout.access("modern");
    this.#rules?.legacy.modernAccess();
  }

  // ── common configuration (§4.1.4.3) ─────────────────────────────────────────

  #commonRead(offset: number, width: 1 | 2 | 4): number {
    const rules = this.#rules?.modern;
    const register = this.#common.at(offset, width);
    rules?.commonAccess(offset, width, register !== undefined, null);
    if (register === undefined) return allOnes(width);
    const value = register.read() >>> 0;
    if (offset === CommonConfig.DEVICE_STATUS) rules?.statusRead(value);
    if (offset === CommonConfig.QUEUE_RESET) rules?.queueResetRead(this.#queueSelect, value !== 0);
    return value;
  }

  #commonWrite(offset: number, width: 1 | 2 | 4, value: number): void {
    const rules = this.#rules?.modern;
    const register = this.#common.at(offset, width);
    rules?.commonAccess(offset, width, register !== undefined, value);
    if (offset === CommonConfig.DEVICE_STATUS) rules?.statusWrite(value);
    if (offset >= CommonConfig.QUEUE_SIZE && offset !== CommonConfig.QUEUE_NOTIFY_OFF)
      rules?.queueWrite(this.#queueSelect, offset, value, this.#device.queueSize);
    register?.write?.(value);
  }

  #commonRegisters(): Register[] {
    const device = this.#device;
    const queue = (): QueueState | undefined => device.queues[this.#queueSelect];
    const area = (name: string, offset: CommonConfig, index: number): Register[] =>
      [0, 1].map((half) => ({
        name: `${name}_${half === 0 ? "low" : "high"}`,
        offset: offset + 4 * half,
        width: 4 as const,
        read: () => queue()?.areas[index * 2 + half] ?? 0,
        write: (value: number) => {
          const state = queue();
          if (state !== undefined && !state.enabled) state.areas[index * 2 + half] = value;
        },
      }));
    const registers: Register[] = [
      {
        name: "device_feature_select",
        offset: CommonConfig.DEVICE_FEATURE_SELECT,
        width: 4,
        read: () => this.#deviceFeatureSelect,
        write: (v) => {
          this.#deviceFeatureSelect = v;
        },
      },
      {
        name: "device_feature",
        offset: CommonConfig.DEVICE_FEATURE,
        width: 4,
        read: () => device.offered[this.#deviceFeatureSelect] ?? 0,
      },
      {
        name: "driver_feature_select",
        offset: CommonConfig.DRIVER_FEATURE_SELECT,
        width: 4,
        read: () => this.#driverFeatureSelect,
        write: (v) => {
          this.#driverFeatureSelect = v;
        },
      },
      {
        name: "driver_feature",
        offset: CommonConfig.DRIVER_FEATURE,
        width: 4,
        read: () => device.accepted[this.#driverFeatureSelect] ?? 0,
        write: (v) => device.accept(this.#driverFeatureSelect, v),
      },
      {
        name: "config_msix_vector",
        offset: CommonConfig.CONFIG_MSIX_VECTOR,
        width: 2,
        read: () => device.configVector,
        write: (v) => {
          device.configVector = device.interrupts.vector(v);
        },
      },
      {
        name: "num_queues",
        offset: CommonConfig.NUM_QUEUES,
        width: 2,
        read: () => device.queues.length,
      },
      {
        name: "device_status",
        offset: CommonConfig.DEVICE_STATUS,
        width: 1,
        read: () => device.status,
        write: (v) => {
          device.writeStatus(v);
          if (v === 0) this.#queueSelect = 0;
        },
      },
      {
        name: "config_generation",
        offset: CommonConfig.CONFIG_GENERATION,
        width: 1,
        read: () => device.generation,
      },
      {
        name: "queue_select",
        offset: CommonConfig.QUEUE_SELECT,
        width: 2,
        read: () => this.#queueSelect,
        write: (v) => {
          this.#queueSelect = v;
        },
      },
      {
        name: "queue_size",
        offset: CommonConfig.QUEUE_SIZE,
        width: 2,
        read: () => queue()?.size ?? 0,
        write: (v) => device.resize(this.#queueSelect, v),
      },
      {
        name: "queue_msix_vector",
        offset: CommonConfig.QUEUE_MSIX_VECTOR,
        width: 2,
        read: () => queue()?.vector ?? NO_VECTOR,
        write: (v) => {
          const state = queue();
          if (state !== undefined) state.vector = device.interrupts.vector(v);
        },
      },
      {
        name: "queue_enable",
        offset: CommonConfig.QUEUE_ENABLE,
        width: 2,
        read: () => Number(queue()?.enabled ?? false),
        write: (v) => {
          if (v === 1) this.#enable();
        },
      },
      {
        name: "queue_notify_off",
        offset: CommonConfig.QUEUE_NOTIFY_OFF,
        width: 2,
        read: () => (queue() === undefined ? 0 : this.#queueSelect),
      },
      ...area("queue_desc", CommonConfig.QUEUE_DESC, 0),
      ...area("queue_driver", CommonConfig.QUEUE_DRIVER, 1),
      ...area("queue_device", CommonConfig.QUEUE_DEVICE, 2),
      {
        name: "queue_reset",
        offset: CommonConfig.QUEUE_RESET,
        width: 2,
        read: () => Number(queue()?.resetting ?? false),
        write: (v) => {
          if (v === 1 && device.has(ReservedFeature.RING_RESET))
            device.resetQueue(this.#queueSelect);
        },
      },
    ];
    if (hasBit(device.offered, ReservedFeature.NOTIF_CONFIG_DATA))
      registers.push({
        name: "queue_notif_config_data",
        offset: CommonConfig.QUEUE_NOTIF_CONFIG_DATA,
        width: 2,
        read: () => (queue() === undefined ? 0 : NOTIF_CONFIG_DATA_BASE + this.#queueSelect),
      });
    return registers;
  }

  #enable(): void {
    const state = this.#device.queues[this.#queueSelect];
    if (state === undefined) return;
    const wide = (area: number): { low: number; high: number } => ({
      low: state.areas[area * 2] ?? 0,
      high: state.areas[area * 2 + 1] ?? 0,
    });
    this.#device.enable(this.#queueSelect, {
      descriptors: wide(0),
      driver: wide(1),
      device: wide(2),
    });
  }

  // ── doorbells (§4.1.4.4, §4.1.5.2) ──────────────────────────────────────────

  #doorbell(offset: number, width: 1 | 2 | 4, value: number): void {
    const { multiplier } = this.#layout;
    const named = value & 0xffff;
    const base = this.#device.has(ReservedFeature.NOTIF_CONFIG_DATA) ? NOTIF_CONFIG_DATA_BASE : 0;
    // With a multiplier of 0 all queues share one doorbell, and its value tells them apart.
    const index = multiplier === 0 ? named - base : offset / multiplier;
    this.#rules?.modern.notify(width, value, index, NOTIF_CONFIG_DATA_BASE + index);
    this.#device.notified(index);
  }

  // ── device configuration (§2.5) ─────────────────────────────────────────────

  #configRead(offset: number, width: 1 | 2 | 4): number {
    const { config } = this.#device.model;
    const known = offset + width <= this.#layout.configLength;
    this.#rules?.modern.deviceConfigAccess(offset, known, false);
    if (!known) return allOnes(width);
    // What the capability covers beyond the structure is padding (§4.1.4).
    return offset + width <= config.length ? config.read(offset, width) : 0;
  }

  #configWrite(offset: number, width: 1 | 2 | 4, value: number): void {
    const { config } = this.#device.model;
    this.#rules?.modern.deviceConfigAccess(
      offset,
      offset + width <= this.#layout.configLength,
      true,
    );
    // §3.4.2
    if (!this.#device.suspended && offset + width <= config.length)
      config.write(offset, width, value);
  }
}
