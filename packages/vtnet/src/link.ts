// The link: what the configuration says of it (virtio 1.4 §5.1.4), and who is told when that changes.
import type { ConfigSpace, FeatureSet, Log, TaskQueue } from "@virtio/core";
import { NetFeature, NetStatus } from "@virtio/core/net";
import type { Features } from "./features.js";
import { fieldsOf } from "./settle.js";
import type { Setup } from "./setup.js";

/** Largest speed; above it nothing is known (§5.1.4.2). Mbit/s. */
const SPEED_MAX = 0x7fff_ffff;

/** As NetworkInterface has it. */
export interface Link {
  readonly up: boolean;
  /** Mbit/s; null: unknown. */
  readonly speed: number | null;
  readonly duplex: "full" | "half" | null;
}

/** A link, and whether the device asks for an announcement. */
interface LinkStatus extends Link {
  readonly announce: boolean;
}

/** Without STATUS the link is up. @throws VirtioFault what reading throws */
async function readLink(config: ConfigSpace, features: FeatureSet<Features>): Promise<LinkStatus> {
  const fields = {
    ...(features.has(NetFeature.STATUS) ? fieldsOf("status") : {}),
    ...(features.has(NetFeature.SPEED_DUPLEX) ? fieldsOf("speed", "duplex") : {}),
  };
  const values: Record<string, number> =
    Object.keys(fields).length === 0 ? {} : await config.readAll<string>(fields);
  const { status = NetStatus.LINK_UP, speed = -1, duplex = -1 } = values;
  return {
    up: (status & NetStatus.LINK_UP) !== 0,
    speed: speed >= 0 && speed <= SPEED_MAX ? speed : null,
    duplex: duplex === 1 ? "full" : duplex === 0 ? "half" : null,
    announce: features.has(NetFeature.GUEST_ANNOUNCE) && (status & NetStatus.ANNOUNCE) !== 0,
  };
}

/** What is needed to follow a link. */
export interface LinkWatchOptions {
  readonly config: ConfigSpace;
  readonly setup: Setup;
  readonly tasks: TaskQueue;
  readonly log: Log;
  /** The link went up or down. */
  readonly onLink: (up: boolean) => void;
  /** The device asks for an announcement. */
  readonly onAnnounce: () => void;
}

/** Follows the link of a device. */
export class LinkWatch {
  /** The configuration is not to be read; whoever ends this calls changed(). */
  paused = false;
  readonly #options: LinkWatchOptions;
  readonly #listeners = new Set<(up: boolean) => void>();
  #now: Link = { up: false, speed: null, duplex: null };
  /** The configuration changed since it was read; `reading`: it is being read. */
  #config: "read" | "reading" | "changed" = "read";

  constructor(options: LinkWatchOptions) {
    this.#options = options;
  }

  /** As it was read last; down before. */
  get now(): Link {
    return this.#now;
  }

  /** Calls `listener` as a task after the link went up or down, until what it returns is called. */
  listen(listener: (up: boolean) => void): () => void {
    const own = (up: boolean): void => listener(up);
    this.#listeners.add(own);
    return () => {
      this.#listeners.delete(own);
    };
  }

  /** The configuration changed: however often it does meanwhile, it is read once more (vtnet_config_change). Never rejects. */
  async changed(): Promise<void> {
    if (this.paused) return;
    const reading = this.#config !== "read";
    this.#config = "changed";
    if (reading) return;
    while (this.#config === "changed" && !this.paused) {
      this.#config = "reading";
      await this.#read();
    }
    this.#config = "read";
  }

  async #read(): Promise<void> {
    const { config, setup, log, onAnnounce } = this.#options;
    try {
      const { announce, ...link } = await readLink(config, setup.features);
      // What a device says while it is reset means nothing.
      if (this.paused) return;
      this.#set(link);
      if (announce) onAnnounce();
    } catch (error) {
      if (!this.paused) log(`cannot read the link status: ${String(error)}`);
    }
  }

  #set(link: Link): void {
    const before = this.#now;
    this.#now = link;
    if (link.up === before.up) return;
    const { tasks, log, onLink } = this.#options;
    onLink(link.up);
    log(`link state changed to ${link.up ? "UP" : "DOWN"}`);
    for (const listener of this.#listeners)
      tasks.enqueue(() => {
        if (this.#listeners.has(listener)) listener(link.up);
      });
  }
}
