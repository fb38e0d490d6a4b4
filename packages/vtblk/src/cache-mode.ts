// The write cache of a block device: writethrough or writeback (virtio 1.4 §5.2.5, CONFIG_WCE).
import { type ConfigSpace, type FeatureSet, type SysctlNode, VirtioFault } from "@virtio/core";
import { BlockConfig, BlockFeature } from "@virtio/core/block";
import type { Features } from "./features.js";

/** 0 writethrough, 1 writeback. Flushes are sent in both: what was written in the one may be volatile in the other. */
export class CacheMode {
  readonly #config: ConfigSpace;
  /** The device lets it be switched. */
  readonly #switchable: boolean;
  #mode: number;
  /** Somebody set it: a reset takes that. */
  #set = false;

  /** @param found - what the device's configuration says */
  constructor(config: ConfigSpace, features: FeatureSet<Features>, found: number) {
    this.#config = config;
    this.#switchable = features.has(BlockFeature.CONFIG_WCE);
    // Without CONFIG_WCE a device that has FLUSH writes back, and one that has none writes through.
    this.#mode = this.#switchable ? found : Number(features.has(BlockFeature.FLUSH));
  }

  /** Nothing where the device does not let it be switched. */
  async set(mode: number): Promise<void> {
    if (!this.#switchable) return;
    await this.#config.write(BlockConfig.writeback[0], BlockConfig.writeback[1] as 1, mode);
    this.#mode = mode;
    this.#set = true;
  }

  /** After a reset. */
  async setAgain(): Promise<void> {
    if (this.#set) await this.set(this.#mode);
  }

  /** `dev.vtblk.N.writecache_mode`: to be written only with CONFIG_WCE. `ready`: the device may be touched. */
  publish(sysctl: SysctlNode, ready: () => Promise<void>): void {
    const write = async (value: string): Promise<void> => {
      if (!/^\s*[01]\s*$/.test(value))
        throw new VirtioFault("INVALID", `writecache_mode '${value}' is not 0 or 1`);
      await ready();
      await this.set(Number(value));
    };
    sysctl.value(
      "writecache_mode",
      "Write cache mode: 0 writethrough, 1 writeback",
      () => this.#mode,
      ...(this.#switchable ? [write] : []),
    );
  }
}
