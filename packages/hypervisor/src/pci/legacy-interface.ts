// The legacy interface of a virtio device as registers, in an I/O BAR (virtio 1.4 §4.1.4.10).
import { LEGACY_PAGE_SIZE, LegacyDeviceConfig, LegacyRegister, NO_VECTOR } from "@virtio/core/pci";
import { splitLayout } from "@virtio/ring";
import { allOnes, type RegisterSpace, RegisterTable } from "../registers.js";
import type { DeviceRules } from "../rules/device-rules.js";
import type { QueueState, VirtioDevice } from "./virtio-device.js";

/** BAR 0: registers, and behind them the device configuration. */
export class LegacyInterface implements RegisterSpace {
  readonly length: number;
  readonly #device: VirtioDevice;
  readonly #registers: RegisterTable;
  readonly #rules: DeviceRules | null;
  #queueSelect = 0;
  /** queue_address of each queue. */
  #pages: number[] = [];

  constructor(device: VirtioDevice, rules: DeviceRules | null) {
    // A power of two that holds the whole, with MSI-X.
    this.length =
      2 ** Math.ceil(Math.log2(LegacyDeviceConfig.WITH_MSIX + device.model.config.length));
    this.#device = device;
    this.#rules = rules;
    this.#registers = this.#table();
  }

  /** Where the device configuration begins: the vector registers are there only while MSI-X is enabled. */
  get #configAt(): number {
    return this.#device.interrupts.msixEnabled
      ? LegacyDeviceConfig.WITH_MSIX
      : LegacyDeviceConfig.WITHOUT_MSIX;
  }

  read(offset: number, width: 1 | 2 | 4): number {
    this.#rules?.layout.access("legacy");
    if (offset >= this.#configAt) return this.#configRead(offset - this.#configAt, width);
    const rules = this.#rules?.legacy;
    const register = this.#registers.at(offset, width);
    rules?.access(offset, width, register !== undefined, null);
    const value = register === undefined ? allOnes(width) : register.read() >>> 0;
    if (offset === LegacyRegister.DEVICE_STATUS) rules?.statusRead(value);
    return value;
  }

  write(offset: number, width: 1 | 2 | 4, value: number): void {
    this.#rules?.layout.access("legacy");
    if (offset >= this.#configAt) {
      this.#configWrite(offset - this.#configAt, width, value);
      return;
    }
    const register = this.#registers.at(offset, width);
    if (offset === LegacyRegister.DEVICE_STATUS) this.#rules?.legacy.statusWrite(value);
    else this.#rules?.legacy.access(offset, width, register !== undefined, value);
    if (register?.write === undefined) return;
    // Who writes here is a legacy driver, until it resets the device (§2.2.3).
    this.#device.legacy = true;
    register.write(value);
  }

  #table(): RegisterTable {
    const device = this.#device;
    const queue = (): QueueState | undefined => device.queues[this.#queueSelect];
    return new RegisterTable([
      {
        name: "device_features",
        offset: LegacyRegister.DEVICE_FEATURES,
        width: 4,
        read: () => device.legacyOffered,
      },
      {
        name: "driver_features",
        offset: LegacyRegister.DRIVER_FEATURES,
        width: 4,
        read: () => device.accepted[0] ?? 0,
        write: (v) => device.acceptLegacy(v),
      },
      {
        name: "queue_address",
        offset: LegacyRegister.QUEUE_ADDRESS,
        width: 4,
        read: () => (queue()?.enabled === true ? (this.#pages[this.#queueSelect] ?? 0) : 0),
        write: (v) => this.#place(v),
      },
      {
        name: "queue_size",
        offset: LegacyRegister.QUEUE_SIZE,
        width: 2,
        read: () => queue()?.size ?? 0,
      },
      {
        name: "queue_select",
        offset: LegacyRegister.QUEUE_SELECT,
        width: 2,
        read: () => this.#queueSelect,
        write: (v) => {
          this.#queueSelect = v;
        },
      },
      {
        name: "queue_notify",
        offset: LegacyRegister.QUEUE_NOTIFY,
        width: 2,
        read: () => 0,
        write: (v) => {
          this.#rules?.legacy.notify(v);
          device.notified(v);
        },
      },
      {
        name: "device_status",
        offset: LegacyRegister.DEVICE_STATUS,
        width: 1,
        read: () => device.status,
        write: (v) => {
          device.writeStatus(v);
          if (v === 0) this.#queueSelect = 0;
        },
      },
      {
        name: "isr_status",
        offset: LegacyRegister.ISR_STATUS,
        width: 1,
        read: () => device.interrupts.readIsr(),
      },
      {
        name: "config_msix_vector",
        offset: LegacyRegister.CONFIG_MSIX_VECTOR,
        width: 2,
        read: () => device.configVector,
        write: (v) => {
          device.configVector = device.interrupts.vector(v);
        },
      },
      {
        name: "queue_msix_vector",
        offset: LegacyRegister.QUEUE_MSIX_VECTOR,
        width: 2,
        read: () => queue()?.vector ?? NO_VECTOR,
        write: (v) => {
          const state = queue();
          if (state !== undefined) state.vector = device.interrupts.vector(v);
        },
      },
    ]);
  }

  /** The queue begins to exist at a page, or with page 0 ceases to (§4.1.5.1.3.1). */
  #place(page: number): void {
    const index = this.#queueSelect;
    const state = this.#device.queues[index];
    if (state === undefined) return;
    if (page === 0) {
      if (state.enabled) this.#device.resetQueue(index);
      return;
    }
    this.#rules?.legacy.placed(index, page);
    this.#pages[index] = page;
    const layout = splitLayout(state.size, LEGACY_PAGE_SIZE);
    const at = (offset: number): { low: number; high: number } => {
      const address = page * LEGACY_PAGE_SIZE + offset;
      return { low: address >>> 0, high: Math.floor(address / 0x1_0000_0000) };
    };
    this.#device.enable(index, {
      descriptors: at(layout.descriptors),
      driver: at(layout.available),
      device: at(layout.used),
    });
  }

  // ── device configuration, at any width (§4.1.4.10) ──────────────────────────

  #configRead(offset: number, width: 1 | 2 | 4): number {
    const { config } = this.#device.model;
    const rules = this.#rules?.legacy;
    rules?.deviceConfigAccess(offset, width, false, this.#device.interrupts.msixEnabled);
    if (offset + width > config.length) return allOnes(width);
    const value = config.read(offset, width);
    rules?.deviceConfigRead(offset, width, value);
    return value;
  }

  #configWrite(offset: number, width: 1 | 2 | 4, value: number): void {
    const { config } = this.#device.model;
    const rules = this.#rules?.legacy;
    rules?.deviceConfigAccess(offset, width, true, this.#device.interrupts.msixEnabled);
    if (offset + width <= config.length) config.write(offset, width, value);
  }
}
