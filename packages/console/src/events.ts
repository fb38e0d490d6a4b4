// What the device's control messages lead to (virtio 1.4 §5.3.6.2; FreeBSD's vtcon_ctrl_*_event, whose lines these are).
import { Errno, type Log, VirtioFault } from "@virtio/core";
import { ConsoleEvent } from "@virtio/core/console";
import type { ControlMessage, ControlQueue } from "./control-queue.js";
import { aliasError, portNameOf } from "./names.js";
import type { ConsolePort } from "./port.js";
import type { Ports } from "./ports.js";
import type { WindowSizes } from "./sizes.js";

/** What messages work on. */
export interface EventsOptions {
  /** `vtcon0` */
  readonly name: string;
  readonly log: Log;
  /** Ports that there can be. */
  readonly maxPorts: number;
  readonly ports: Ports;
  readonly sizes: WindowSizes;
  /** Where answers go; null: nowhere (no MULTIPORT). */
  readonly control: () => ControlQueue | null;
}

export class Events {
  readonly #options: EventsOptions;
  /** Ports that the device has not named again since it was reset. */
  readonly #unconfirmed = new Set<number>();

  constructor(options: EventsOptions) {
    this.#options = options;
  }

  /** Nonsense is logged, and has no other effect. */
  process({ id, event, value, data }: ControlMessage): void {
    const { log, maxPorts, sizes } = this.#options;
    if (id >= maxPorts) {
      log(`vtcon_ctrl_process_event: event ${event} invalid port ID ${id}`);
      return;
    }
    switch (event) {
      case ConsoleEvent.DEVICE_ADD:
        this.#added(id);
        break;
      case ConsoleEvent.DEVICE_REMOVE:
        this.#removed(id);
        break;
      case ConsoleEvent.CONSOLE_PORT:
        this.#nominated(id);
        break;
      case ConsoleEvent.RESIZE:
        if (this.#options.ports.get(id) !== undefined) sizes.resize(id, data);
        break;
      case ConsoleEvent.PORT_OPEN:
        this.#known("open", id)?.setConnected(value !== 0);
        break;
      case ConsoleEvent.PORT_NAME:
        this.#named(id, data);
        break;
      default:
      // FreeBSD is silent about what it does not know.
    }
  }

  /** Makes a port. @throws VirtioFault OUT_OF_MEMORY, and what who it is published to says */
  add(id: number): void {
    const { ports, sizes } = this.#options;
    const port = ports.add(id);
    const size = sizes.get(id);
    if (size !== null) port.setSize(size);
  }

  /** The port that a message is about. */
  #known(verb: "remove" | "console" | "open" | "name", id: number): ConsolePort | undefined {
    const port = this.#options.ports.get(id);
    if (port === undefined)
      this.#options.log(`vtcon_ctrl_port_${verb}_event: ${verb} port ${id}, but does not exist`);
    return port;
  }

  #added(id: number): void {
    const { ports, log } = this.#options;
    const control = this.#options.control();
    const known = ports.get(id);
    if (known !== undefined && !this.#unconfirmed.delete(id)) {
      log(`vtcon_ctrl_port_add_event: adding port ${id}, but already exists`);
      return;
    }
    try {
      if (known === undefined) this.add(id);
      else ports.fill(id);
    } catch (error) {
      const errno = error instanceof VirtioFault ? Errno[error.errno] : Errno.ENXIO;
      log(`vtcon_ctrl_port_add_event: cannot create port ${id}: ${errno}`);
      control?.answer(id, ConsoleEvent.PORT_READY, 0);
      return;
    }
    control?.answer(id, ConsoleEvent.PORT_READY, 1);
    if (known?.opened === true) control?.answer(id, ConsoleEvent.PORT_OPEN, 1);
  }

  #removed(id: number): void {
    const { name, ports, sizes, control } = this.#options;
    const port = this.#known("remove", id);
    if (port === undefined) return;
    this.#unconfirmed.delete(id);
    sizes.forget(id);
    control()?.drop(id);
    const what = `${port.name} was taken away`;
    ports.remove(port, new VirtioFault("CLOSED", what, { device: name }));
  }

  /** The answer is due whether somebody uses the port or not. */
  #nominated(id: number): void {
    const port = this.#known("console", id);
    if (port === undefined) return;
    port.setConsole();
    this.#options.control()?.answer(id, ConsoleEvent.PORT_OPEN, 1);
  }

  /** A name is for ever: a second one is ignored, as one that is not ASCII. */
  #named(id: number, data: Uint8Array): void {
    const port = this.#known("name", id);
    const name = portNameOf(data);
    if (port === undefined || port.alias !== "" || name === "") return;
    const taken = new Set(this.#options.ports.all.map(({ alias }) => alias));
    const error = aliasError(name, taken);
    if (error === 0) port.setAlias(name);
    else this.#options.log(`cannot make dev alias (vtcon/${name}) error ${error}`);
  }

  /** The device was reset, and will name its ports anew. */
  expectAll(): void {
    for (const { id } of this.#options.ports.all) this.#unconfirmed.add(id);
  }

  /** It has: those that it did not name are gone. */
  removeUnconfirmed(): void {
    for (const id of [...this.#unconfirmed]) this.#removed(id);
  }
}
