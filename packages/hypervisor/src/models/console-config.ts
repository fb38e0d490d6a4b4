// What a console device offers and says of itself: struct virtio_console_config (virtio 1.4 §5.3.3, §5.3.4).
import { VirtioFault } from "@virtio/core";
import {
  CONSOLE_CONFIG_SIZE,
  ConsoleConfig,
  type ConsoleConfigField,
  ConsoleFeature,
} from "@virtio/core/console";
import type { RegisterSpace } from "../registers.js";
import type { ConsoleHost } from "./console-host.js";

/** Most ports: their doorbells fit the page that functions have for them. */
const CONSOLE_PORTS_MAX = 64;

/** Features that a specification can name. */
export const consoleModelFeatures: readonly ConsoleFeature[] = [
  ConsoleFeature.SIZE,
  ConsoleFeature.MULTIPORT,
  ConsoleFeature.EMERG_WRITE,
];

/** Feature that gates each configuration field by its offset. */
const gates: readonly (readonly [from: number, to: number, feature: ConsoleFeature])[] = [
  [0, 4, ConsoleFeature.SIZE],
  [4, 8, ConsoleFeature.MULTIPORT],
  [8, 12, ConsoleFeature.EMERG_WRITE],
];

/** What the configuration is made of. */
export interface ConsoleConfigurationOptions {
  readonly host: ConsoleHost;
  /** Ports that there can be; undefined: as many as there are. */
  readonly maxPorts: number | undefined;
  /** By the specification's names, what to offer and what to hold back. */
  readonly features: Readonly<Record<string, boolean>>;
}

export class ConsoleConfiguration implements RegisterSpace {
  readonly length: number = CONSOLE_CONFIG_SIZE;
  readonly offered: readonly ConsoleFeature[];
  /** Ports that there can be. */
  readonly maxPorts: number;
  readonly #host: ConsoleHost;
  readonly #bytes = new DataView(new ArrayBuffer(CONSOLE_CONFIG_SIZE));

  /** @throws VirtioFault INVALID */
  constructor({ host, maxPorts, features }: ConsoleConfigurationOptions) {
    const last = host.ports.at(-1)?.id ?? 0;
    const ports = maxPorts ?? last + 1;
    const refuse = (what: string): never => {
      throw new VirtioFault("INVALID", `console device: ${what}`);
    };
    if (!Number.isInteger(ports) || ports < 1 || ports > CONSOLE_PORTS_MAX)
      refuse(`${ports} ports, not 1 to ${CONSOLE_PORTS_MAX}`);
    if (last >= ports) refuse(`port ${last} of ${ports}`);
    this.offered = consoleModelFeatures.filter(
      (bit) => features[ConsoleFeature[bit]] ?? (bit !== ConsoleFeature.MULTIPORT || ports > 1),
    );
    if (ports > 1 && !this.offered.includes(ConsoleFeature.MULTIPORT))
      refuse(`${ports} ports without MULTIPORT`);
    this.maxPorts = ports;
    this.#host = host;
    host.maxPorts = ports;
    if (this.offered.includes(ConsoleFeature.MULTIPORT)) this.#set("maxNrPorts", ports);
  }

  #set(field: ConsoleConfigField, value: number): void {
    const [offset, width] = ConsoleConfig[field];
    if (width === 2) this.#bytes.setUint16(offset, value, true);
    else this.#bytes.setUint32(offset, value, true);
  }

  gate(offset: number): ConsoleFeature | undefined {
    return gates.find(([from, to]) => offset >= from && offset < to)?.[2];
  }

  read(offset: number, width: 1 | 2 | 4): number {
    if (this.offered.includes(ConsoleFeature.SIZE)) {
      const size = this.#host.ports.find(({ id }) => id === 0)?.size;
      this.#set("cols", size?.cols ?? 0);
      this.#set("rows", size?.rows ?? 0);
    }
    if (width === 1) return this.#bytes.getUint8(offset);
    return width === 2 ? this.#bytes.getUint16(offset, true) : this.#bytes.getUint32(offset, true);
  }

  /** A byte to put out, at any time, also before a driver has set the device up (§5.3.5.1). Nothing else is writable. */
  write(offset: number, _width: 1 | 2 | 4, value: number): void {
    if (offset !== ConsoleConfig.emergWr[0]) return;
    if (!this.offered.includes(ConsoleFeature.EMERG_WRITE)) return;
    this.#host.emergency.push(value & 0xff);
    this.#host.onEmergency?.(value & 0xff);
  }
}
