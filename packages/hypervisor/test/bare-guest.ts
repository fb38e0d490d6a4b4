// A guest without a driver for a block device: it looks for capabilities, and lays out one split ring, right or wrong.
import type { DmaRegion, IoRegion } from "@virtio/core";
import { BlockConfig, type BlockConfigField } from "@virtio/core/block";
import { CommonConfig, PciCapability, PciRegister, VirtioCapability } from "@virtio/core/pci";
import { blk, type EmbeddedBlkOptions, type EmbeddedOptions, MemoryBackend } from "../src/index.js";
import { featureWords, HandGuest, LEGACY_BAR, STRUCTURES_BAR } from "./hand-guest.js";

const MSIX_BAR = 1;

/** The device of a guest, and what its machine has. */
export interface GuestOptions extends EmbeddedBlkOptions {
  readonly readOnly?: boolean;
  readonly msi?: boolean;
  readonly distort?: EmbeddedOptions["distort"];
  /** Whether the guest looks for capabilities. Default true. */
  readonly walk?: boolean;
}

/** A whole life of one block device, by hand. */
export class BareGuest extends HandGuest {
  readonly content = new Uint8Array(1 << 20);
  /** BAR 0 of a device with a legacy interface. */
  legacy!: IoRegion;
  /** Wherever the capability says that the common configuration is. */
  protected override io: Pick<IoRegion, "read" | "write"> = this;
  #structures!: IoRegion;
  #msix!: IoRegion;
  #regions = new Map<VirtioCapability, { at: number; offset: number; length: number }>();
  msixAt = 0;
  msiAt = 0;
  ring!: DmaRegion;
  data!: DmaRegion;
  descriptors!: Uint32Array;
  available!: Uint16Array;
  used!: Uint32Array;
  size = 8;
  #next = 0;

  static async start(options: GuestOptions = {}): Promise<BareGuest> {
    const guest = new BareGuest();
    await guest.boot(options);
    return guest;
  }

  /** Makes the machine, places the BARs and looks for capabilities. */
  protected async boot(options: GuestOptions): Promise<void> {
    const { readOnly = false, walk = true, msi = false, distort = {}, ...spec } = options;
    this.content.forEach((_, i) => {
      this.content[i] = (i >>> 9) + i;
    });
    const [legacy = null, structures = null, msix = null] = await this.power(
      {
        devices: [
          blk({ serial: "BARE", backend: new MemoryBackend(this.content, { readOnly }), ...spec }),
        ],
        msi,
        distort,
        rules: this.rules,
        memory: 1 << 20,
      },
      [
        [LEGACY_BAR, 0xc000],
        [STRUCTURES_BAR, distort.structures === "io" ? 0xd000 : 0xe000_0000],
        [MSIX_BAR, 0xe010_0000],
      ],
    );
    if (legacy !== null) this.legacy = legacy;
    if (structures !== null) this.#structures = structures;
    if (msix !== null) this.#msix = msix;
    if (walk) await this.#walk();
    this.ring = this.machine.memory.allocate(8192, 4096);
    this.data = this.machine.memory.allocate(65536, 4096);
  }

  async #walk(): Promise<void> {
    const { fn } = this;
    for (
      let at = await fn.read(PciRegister.CAPABILITIES, 1);
      at !== 0;
      at = await fn.read(at + 1, 1)
    ) {
      const id = await fn.read(at, 1);
      if (id === PciCapability.MSIX) this.msixAt = at;
      if (id === PciCapability.MSI) this.msiAt = at;
      if (id === PciCapability.VENDOR)
        this.#regions.set(await fn.read(at + 3, 1), {
          at,
          offset: await fn.read(at + 8, 4),
          length: await fn.read(at + 12, 4),
        });
    }
  }

  capability(type: VirtioCapability): { at: number; offset: number; length: number } {
    const region = this.#regions.get(type);
    if (region === undefined) throw new Error(`no capability ${type}`);
    return region;
  }

  read(
    offset: number,
    width: 1 | 2 | 4,
    type: VirtioCapability = VirtioCapability.COMMON,
  ): Promise<number> {
    return this.#structures.read(this.capability(type).offset + offset, width);
  }

  write(
    offset: number,
    width: 1 | 2 | 4,
    value: number,
    type: VirtioCapability = VirtioCapability.COMMON,
  ): Promise<void> {
    return this.#structures.write(this.capability(type).offset + offset, width, value);
  }

  get msixTable(): IoRegion {
    return this.#msix;
  }

  override async reset(): Promise<void> {
    await super.reset();
    this.#next = 0;
  }

  /** Lets the device run until its status is so. */
  async untilStatus(value: number): Promise<void> {
    for (let turn = 0; (await this.readStatus()) !== value; turn++) {
      if (turn === 1000) throw new Error("it never came");
      await this.settle();
    }
  }

  /** Steps 4 to 6; resolves to whether the device agreed. */
  async negotiate(
    choose: (offered: number[]) => number[] = ([, high = 0]) => [0, high & 1],
  ): Promise<boolean> {
    return this.agree(choose(await this.offered()));
  }

  /** Addresses of queue 0, without enabling it. */
  async placeQueue(size = 8): Promise<void> {
    this.size = size;
    this.ring.bytes.fill(0);
    const { offset, address } = this.ring;
    const { buffer } = this.machine.memory;
    this.descriptors = new Uint32Array(buffer, offset, size * 4);
    this.available = new Uint16Array(buffer, offset + 2048, 3 + size);
    this.used = new Uint32Array(buffer, offset + 4096, 1 + 2 * size);
    await this.write(CommonConfig.QUEUE_SELECT, 2, 0);
    await this.write(CommonConfig.QUEUE_SIZE, 2, size);
    await this.place(address, address + 2048, address + 4096);
  }

  enableQueue(): Promise<void> {
    return this.write(CommonConfig.QUEUE_ENABLE, 2, 1);
  }

  /** Everything up to DRIVER_OK. */
  async run(choose?: (offered: number[]) => number[]): Promise<void> {
    await this.acknowledge();
    await this.negotiate(choose);
    await this.placeQueue();
    await this.enableQueue();
    await this.driverOk();
  }

  descriptor(i: number, at: number, length: number, flags: number, next = 0): void {
    this.descriptors.set([this.data.address + at, 0, length, (flags | (next << 16)) >>> 0], i * 4);
  }

  /** Offers a chain of (offset in data, length, flags), from descriptor 0 on, and rings. */
  async offer(
    segments: readonly (readonly [at: number, length: number, flags: number])[],
    ring = true,
  ): Promise<void> {
    for (const [i, [at, length, flags]] of segments.entries())
      this.descriptor(i, at, length, flags | (i + 1 < segments.length ? 1 : 0), i + 1);
    this.available[2 + (this.#next & (this.size - 1))] = 0;
    this.#next = (this.#next + 1) & 0xffff;
    this.available[1] = this.#next;
    if (ring) await this.ringDoorbell();
  }

  ringDoorbell(width: 2 | 4 = 2, value = 0): Promise<void> {
    return this.write(0, width, value, VirtioCapability.NOTIFY);
  }

  /** A block request: header at 0, data at 512, status at 511 of `data`. */
  async request(
    type: number,
    sector: number,
    out: number,
    into: number,
  ): Promise<{ status: number; used: number }> {
    const header = new DataView(this.machine.memory.buffer, this.data.offset, 16);
    header.setUint32(0, type, true);
    header.setUint32(4, 0, true);
    header.setUint32(8, sector, true);
    header.setUint32(12, 0, true);
    this.data.bytes[511] = 0xff;
    const before = this.usedIndex;
    const segments: [number, number, number][] = [[0, 16, 0]];
    if (out > 0) segments.push([512, out, 0]);
    if (into > 0) segments.push([512, into, 2]);
    segments.push([511, 1, 2]);
    await this.offer(segments);
    await this.until(() => this.usedIndex !== before);
    return {
      status: this.data.bytes[511] ?? -1,
      used: this.used[2 + 2 * (before & (this.size - 1))] ?? -1,
    };
  }

  /** A discard, write zeroes or secure erase of these ranges: its status. */
  async ranged(
    type: number,
    ranges: readonly (readonly [sector: number, sectors: number, flags?: number])[],
  ): Promise<number> {
    const data = new DataView(this.machine.memory.buffer, this.data.offset + 512);
    for (const [i, [sector, sectors, flags = 0]] of ranges.entries())
      for (const [word, value] of [sector, 0, sectors, flags].entries())
        data.setUint32(i * 16 + word * 4, value, true);
    return (await this.request(type, 0, ranges.length * 16, 0)).status;
  }

  /** A field of the block device's configuration. */
  async field(name: BlockConfigField): Promise<number> {
    const [offset, width] = BlockConfig[name];
    const low = await this.read(offset, width === 8 ? 4 : width, VirtioCapability.DEVICE);
    if (width !== 8) return low;
    return low + 2 ** 32 * (await this.read(offset + 4, 4, VirtioCapability.DEVICE));
  }

  get usedIndex(): number {
    return (this.used[0] ?? 0) >>> 16;
  }
}

/** For run() and negotiate(): accepts these bits of word 0, and VERSION_1. */
export const accepting =
  (...bits: readonly number[]) =>
  (): number[] =>
    featureWords(bits);
