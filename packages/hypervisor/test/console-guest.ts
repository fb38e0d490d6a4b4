// A guest without a driver for a console: it drives one function by its registers and split rings, right or wrong.
import { CONSOLE_CONTROL_SIZE, ConsoleFeature, ConsoleQueue } from "@virtio/core/console";
import { CommonConfig } from "@virtio/core/pci";
import {
  ConsoleHost,
  type ConsoleHostPortOptions,
  consoleDevice,
  type EmbeddedConsoleOptions,
} from "../src/index.js";
import { featureWords, NOTIFY_AT, type Part, QueueGuest } from "./hand-guest.js";

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

export class ConsoleGuest extends QueueGuest {
  readonly host: ConsoleHost;
  protected override readonly language = "CONSOLE-";
  protected override readonly turns = 4;

  constructor(host: ConsoleHost, legacy: boolean) {
    super(legacy);
    this.host = host;
  }

  static async start(options: ConsoleGuestOptions = {}): Promise<ConsoleGuest> {
    const { ports, accept, start = true, ...spec } = options;
    const guest = new ConsoleGuest(new ConsoleHost(ports), spec.legacy === "on");
    await guest.boot(consoleDevice({ queueSize: 16, ...spec, host: guest.host }));
    if (start) await guest.run(accept);
    return guest;
  }

  /** Everything up to DRIVER_OK. */
  async run(accept: readonly ConsoleFeature[] = [ConsoleFeature.MULTIPORT]): Promise<void> {
    await this.acknowledge();
    const [offered = 0] = await this.offered();
    const accepted = accept.filter((bit) => (offered & (1 << bit)) !== 0);
    await this.agree(featureWords(accepted));
    const multiport = accepted.includes(ConsoleFeature.MULTIPORT);
    const count = multiport ? 2 * this.host.maxPorts + 2 : 2;
    for (let index = 0; index < count; index++) await this.enable(index);
    await this.driverOk();
  }

  /** Where the queue itself says. */
  override async ring(index: number): Promise<void> {
    if (this.onLegacy) return super.ring(index);
    await this.io.write(CommonConfig.QUEUE_SELECT, 2, index);
    const at = await this.io.read(CommonConfig.QUEUE_NOTIFY_OFF, 2);
    await this.io.write(NOTIFY_AT + at * 4, 2, index);
  }

  /** Makes chains available, one for each list of parts, and rings. */
  async offer(index: number, ...chains: readonly (readonly Part[])[]): Promise<void> {
    for (const parts of chains) this.queues[index]?.offer(parts);
    await this.ring(index);
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
