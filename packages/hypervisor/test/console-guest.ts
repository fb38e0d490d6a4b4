// A guest without a driver for a console: it drives one function by its registers and split rings, right or wrong.
import { DeviceStatus, type IoRegion } from "@virtio/core";
import { CONSOLE_CONTROL_SIZE, ConsoleFeature, ConsoleQueue } from "@virtio/core/console";
import { CommonConfig, LegacyRegister, PciCommand, PciRegister } from "@virtio/core/pci";
import {
  ConsoleHost,
  type ConsoleHostPortOptions,
  consoleDevice,
  type EmbeddedConsoleOptions,
  type EmbeddedMachine,
  embedded,
  RuleBook,
} from "../src/index.js";
import { BareQueue, type Part } from "./net-guest.js";

const STRUCTURES_BAR = 4;
const DEVICE_AT = 0x2000;
const NOTIFY_AT = 0x3000;
const LEGACY_CONFIG_AT = 20;

/** How a guest is made. */
export interface ConsoleGuestOptions extends Omit<EmbeddedConsoleOptions, "host" | "ports"> {
  readonly ports?: readonly ConsoleHostPortOptions[];
  /** Features to accept besides VERSION_1. Default: MULTIPORT where it is offered. */
  readonly accept?: readonly ConsoleFeature[];
  /** Default true. */
  readonly start?: boolean;
}

/** A control message, as the guest reads it. */
export interface Heard {
  readonly id: number;
  readonly event: number;
  readonly value: number;
  readonly data: Uint8Array;
}

export class ConsoleGuest {
  readonly rules = new RuleBook();
  readonly host: ConsoleHost;
  machine!: EmbeddedMachine;
  queues: BareQueue[] = [];
  #io!: IoRegion;
  readonly #legacy: boolean;

  constructor(host: ConsoleHost, legacy: boolean) {
    this.host = host;
    this.#legacy = legacy;
  }

  static async start(options: ConsoleGuestOptions = {}): Promise<ConsoleGuest> {
    const { ports, accept, start = true, ...spec } = options;
    const guest = new ConsoleGuest(new ConsoleHost(ports), spec.legacy === "on");
    await guest.#boot(spec);
    if (start) await guest.run(accept);
    return guest;
  }

  async #boot(spec: EmbeddedConsoleOptions): Promise<void> {
    this.machine = await embedded({
      devices: [consoleDevice({ queueSize: 16, ...spec, host: this.host })],
      rules: this.rules,
      memory: 4 << 20,
    });
    const [fn] = await this.machine.buses[0].bus.functions();
    if (fn === undefined) throw new Error("no function");
    const bar = this.#legacy ? 0 : STRUCTURES_BAR;
    await fn.write(PciRegister.BAR0 + bar * 4, 4, this.#legacy ? 0xc000 : 0xe000_0000);
    this.#io = await fn.mapBar(bar);
    await fn.write(
      PciRegister.COMMAND,
      2,
      PciCommand.IO | PciCommand.MEMORY | PciCommand.BUS_MASTER,
    );
  }

  status(value: number): Promise<void> {
    const at = this.#legacy ? LegacyRegister.DEVICE_STATUS : CommonConfig.DEVICE_STATUS;
    return this.#io.write(at, 1, value);
  }

  async reset(): Promise<void> {
    await this.status(0);
  }

  async offered(): Promise<number> {
    if (this.#legacy) return this.#io.read(LegacyRegister.DEVICE_FEATURES, 4);
    await this.#io.write(CommonConfig.DEVICE_FEATURE_SELECT, 4, 0);
    return this.#io.read(CommonConfig.DEVICE_FEATURE, 4);
  }

  /** Everything up to DRIVER_OK. */
  async run(accept: readonly ConsoleFeature[] = [ConsoleFeature.MULTIPORT]): Promise<void> {
    const io = this.#io;
    await this.reset();
    await this.status(DeviceStatus.ACKNOWLEDGE);
    await this.status(DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER);
    const offered = await this.offered();
    const word = accept.reduce((sum, bit) => sum | (1 << bit), 0) & offered;
    if (this.#legacy) await io.write(LegacyRegister.DRIVER_FEATURES, 4, word);
    else {
      for (const [i, value] of [word, 1].entries()) {
        await io.write(CommonConfig.DRIVER_FEATURE_SELECT, 4, i);
        await io.write(CommonConfig.DRIVER_FEATURE, 4, value);
      }
      await this.status(11);
    }
    const multiport = (word & (1 << ConsoleFeature.MULTIPORT)) !== 0;
    const count = multiport ? 2 * this.host.maxPorts + 2 : 2;
    for (let index = 0; index < count; index++) await this.#enable(index);
    await this.status(this.#legacy ? 7 : 15);
  }

  async #enable(index: number): Promise<void> {
    const io = this.#io;
    const legacy = this.#legacy;
    await io.write(legacy ? LegacyRegister.QUEUE_SELECT : CommonConfig.QUEUE_SELECT, 2, index);
    const size = await io.read(legacy ? LegacyRegister.QUEUE_SIZE : CommonConfig.QUEUE_SIZE, 2);
    const queue = new BareQueue(this.machine.memory, size, legacy);
    this.queues[index] = queue;
    const { address } = queue.ring;
    if (legacy) {
      await io.write(LegacyRegister.QUEUE_ADDRESS, 4, address / 4096);
      return;
    }
    for (const [at, value] of [
      [CommonConfig.QUEUE_DESC, address],
      [CommonConfig.QUEUE_DRIVER, address + queue.driverAt],
      [CommonConfig.QUEUE_DEVICE, address + queue.deviceAt(false)],
    ] as const) {
      await io.write(at, 4, value);
      await io.write(at + 4, 4, 0);
    }
    await io.write(CommonConfig.QUEUE_ENABLE, 2, 1);
  }

  readConfig(offset: number, width: 1 | 2 | 4): Promise<number> {
    return this.#io.read((this.#legacy ? LEGACY_CONFIG_AT : DEVICE_AT) + offset, width);
  }

  writeConfig(offset: number, width: 1 | 2 | 4, value: number): Promise<void> {
    return this.#io.write((this.#legacy ? LEGACY_CONFIG_AT : DEVICE_AT) + offset, width, value);
  }

  /** Makes chains available, one for each list of parts, and rings. */
  async offer(index: number, ...chains: readonly (readonly Part[])[]): Promise<void> {
    for (const parts of chains) this.queues[index]?.offer(parts);
    if (this.#legacy) await this.#io.write(LegacyRegister.QUEUE_NOTIFY, 2, index);
    else {
      await this.#io.write(CommonConfig.QUEUE_SELECT, 2, index);
      const at = await this.#io.read(CommonConfig.QUEUE_NOTIFY_OFF, 2);
      await this.#io.write(NOTIFY_AT + at * 4, 2, index);
    }
    await this.settle();
  }

  /** Bytes that came in the buffers of a receive queue, each by itself. */
  taken(index: number): Uint8Array[] {
    return (this.queues[index]?.used() ?? []).map(({ regions, length }) => {
      const bytes = regions.map((region) => region.bytes);
      return Uint8Array.from(bytes.flatMap((piece) => [...piece]).slice(0, length));
    });
  }

  /** Says something to the device. */
  say(id: number, event: number, value = 1): Promise<void> {
    return this.offer(ConsoleQueue.CONTROL_TRANSMIT, [controlMessage(id, event, value)]);
  }

  /** Gives the device buffers for its messages, and reads those that come. */
  async hear(buffers = 8): Promise<Heard[]> {
    await this.offer(ConsoleQueue.CONTROL_RECEIVE, ...Array.from({ length: buffers }, () => [64]));
    return this.heard();
  }

  heard(): Heard[] {
    return this.taken(ConsoleQueue.CONTROL_RECEIVE).map((bytes) => {
      const words = new DataView(bytes.buffer);
      return {
        id: words.getUint32(0, true),
        event: words.getUint16(4, true),
        value: words.getUint16(6, true),
        data: bytes.subarray(CONSOLE_CONTROL_SIZE),
      };
    });
  }

  /** Lets every waiting task of the machine run. */
  async settle(): Promise<void> {
    for (let n = 0; n < 4; n++) {
      await new Promise<void>((resolve) => this.machine.tasks.enqueue(resolve));
      await new Promise<void>((resolve) => setImmediate(resolve));
    }
  }

  /** What was broken of the console's own language: at the registers this guest does as it likes. */
  clauses(): string[] {
    const all = this.rules.violations.map(({ clause }) => clause);
    return [...new Set(all.filter((clause) => clause.startsWith("CONSOLE-")))];
  }
}

/** struct virtio_console_control. */
export function controlMessage(
  id: number,
  event: number,
  value: number,
  little = true,
): Uint8Array {
  const words = new DataView(new ArrayBuffer(CONSOLE_CONTROL_SIZE));
  words.setUint32(0, id, little);
  words.setUint16(4, event, little);
  words.setUint16(6, value, little);
  return new Uint8Array(words.buffer);
}
