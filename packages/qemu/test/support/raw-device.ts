import type { IoRegion, PciFunction } from "@virtio/core";
import {
  CommonConfig,
  NO_VECTOR,
  PciBridgeRegister,
  PciCommand,
  PciRegister,
} from "@virtio/core/pci";
import type { QemuMachine } from "@virtio/qemu";

/** QEMU's layout of BAR 4 of a modern function, and of BAR 1, which holds the MSI-X table. */
const ISR = 0x1000;
const CONFIG = 0x2000;
const NOTIFY = 0x3000;
const NOTIFY_MULTIPLIER = 4;
const MSIX_CAPABILITY = 0x98;

const DRIVER_OK = 0xf;
const VERSION_1 = 1;

/** The functions with virtio's vendor id. */
export async function virtioFunctions(machine: QemuMachine): Promise<readonly PciFunction[]> {
  const functions = await machine.buses[0].bus.functions();
  const vendors = await Promise.all(functions.map((fn) => fn.read(PciRegister.VENDOR_ID, 2)));
  return functions.filter((_, i) => vendors[i] === 0x1af4);
}

/** The n-th function with virtio's vendor id. */
export async function virtioFunction(machine: QemuMachine, n = 0): Promise<PciFunction> {
  const found = (await virtioFunctions(machine))[n];
  if (found === undefined) throw new Error(`no virtio function ${n}`);
  return found;
}

/** Places BAR 1 and BAR 4 at 0xe0000000 + bus * 1 MiB + device * 32 KiB, and enables memory, I/O and bus mastering. */
export async function placeBars(fn: PciFunction): Promise<void> {
  const base = 0xe000_0000 + fn.address.bus * 0x10_0000 + fn.address.device * 0x8000;
  await Promise.all([
    fn.write(PciRegister.BAR0 + 4, 4, base),
    fn.write(PciRegister.BAR0 + 16, 4, base + 0x4000),
    fn.write(PciRegister.COMMAND, 2, PciCommand.IO | PciCommand.MEMORY | PciCommand.BUS_MASTER),
  ]);
}

/** Opens the windows of every bridge to the memory that `placeBars` uses for the buses behind it. */
export async function openBridges(functions: readonly PciFunction[]): Promise<void> {
  for (const fn of functions) {
    if (((await fn.read(PciRegister.HEADER_TYPE, 1)) & 0x7f) !== 1) continue;
    const [first, last] = await Promise.all([
      fn.read(PciBridgeRegister.SECONDARY_BUS, 1),
      fn.read(PciBridgeRegister.SUBORDINATE_BUS, 1),
    ]);
    await Promise.all([
      fn.write(PciBridgeRegister.MEMORY_BASE, 2, 0xe000 + first * 0x10),
      fn.write(PciBridgeRegister.MEMORY_LIMIT, 2, 0xe000 + last * 0x10),
      fn.write(PciRegister.COMMAND, 2, PciCommand.IO | PciCommand.MEMORY | PciCommand.BUS_MASTER),
    ]);
  }
}

/** A modern device, driven by hand as far as the tests of the machine need it. */
export class RawDevice {
  readonly fn: PciFunction;
  readonly #machine: QemuMachine;
  readonly #bar: IoRegion;

  private constructor(machine: QemuMachine, fn: PciFunction, bar: IoRegion) {
    this.#machine = machine;
    this.fn = fn;
    this.#bar = bar;
  }

  static async open(machine: QemuMachine, fn: PciFunction): Promise<RawDevice> {
    await placeBars(fn);
    return new RawDevice(machine, fn, await fn.mapBar(4));
  }

  /** Reads and clears. */
  isr(): Promise<number> {
    return this.#bar.read(ISR, 1);
  }

  /** A service for `line`: counts the reads of an ISR that was not 0. */
  service(seen: (isr: number) => void): () => Promise<boolean> {
    return async () => {
      const isr = await this.isr();
      if (isr !== 0) seen(isr);
      return isr !== 0;
    };
  }

  /** Offered features, low word first. */
  async features(): Promise<readonly [number, number]> {
    const word = async (n: number): Promise<number> => {
      const select = this.#bar.write(CommonConfig.DEVICE_FEATURE_SELECT, 4, n);
      const value = this.#bar.read(CommonConfig.DEVICE_FEATURE, 4);
      await select;
      return value;
    };
    const [low, high] = await Promise.all([word(0), word(1)]);
    return [low, high];
  }

  /** Sectors of 512 bytes. */
  capacity(): Promise<number> {
    return this.#bar.read(CONFIG, 4);
  }

  queueSize(): Promise<number> {
    return this.#bar.read(CommonConfig.QUEUE_SIZE, 2);
  }

  /** To DRIVER_OK, with nothing but VERSION_1 negotiated. */
  async start(): Promise<void> {
    const bar = this.#bar;
    await Promise.all([
      bar.write(CommonConfig.DEVICE_STATUS, 1, 0),
      bar.write(CommonConfig.DEVICE_STATUS, 1, 3),
      bar.write(CommonConfig.DRIVER_FEATURE_SELECT, 4, 1),
      bar.write(CommonConfig.DRIVER_FEATURE, 4, VERSION_1),
      bar.write(CommonConfig.DRIVER_FEATURE_SELECT, 4, 0),
      bar.write(CommonConfig.DRIVER_FEATURE, 4, 0),
      bar.write(CommonConfig.DEVICE_STATUS, 1, 0xb),
      bar.write(CommonConfig.DEVICE_STATUS, 1, DRIVER_OK),
    ]);
  }

  /** Programs a vector of the MSI-X table, enables MSI-X, and makes it the vector of config changes, or of queue 0. */
  async useMessage(
    message: { readonly address: number; readonly data: number },
    vector = 0,
    register = CommonConfig.CONFIG_MSIX_VECTOR,
  ): Promise<void> {
    const table = await this.fn.mapBar(1);
    const control = await this.fn.read(MSIX_CAPABILITY + 2, 2);
    await Promise.all([
      table.write(vector * 16, 4, message.address),
      table.write(vector * 16 + 4, 4, 0),
      table.write(vector * 16 + 8, 4, message.data),
      table.write(vector * 16 + 12, 4, 0),
      this.fn.write(MSIX_CAPABILITY + 2, 2, control | 0x8000),
      this.#bar.write(register, 2, vector),
    ]);
    if ((await this.#bar.read(register, 2)) === NO_VECTOR)
      throw new Error(`the device refused vector ${vector}`);
  }

  /**
   * Sets queue 0 up with one chain, a read of the first sector, and rings the doorbell. @returns the sector, and the used index
   */
  async readFirstSector(): Promise<{ readonly data: Uint8Array; readonly used: () => number }> {
    const bar = this.#bar;
    const { memory } = this.#machine;
    const size = 4;
    const ring = memory.allocate(4096, 4096);
    const buffers = memory.allocate(4096, 4096);
    const view = new DataView(memory.buffer);
    const [available, usedRing] = [ring.offset + 64, ring.offset + 128];
    const descriptor = (i: number, at: number, length: number, flags: number): void => {
      view.setUint32(ring.offset + i * 16, at, true);
      view.setUint32(ring.offset + i * 16 + 8, length, true);
      view.setUint16(ring.offset + i * 16 + 12, flags, true);
      view.setUint16(ring.offset + i * 16 + 14, i + 1, true);
    };
    descriptor(0, buffers.address, 16, 1);
    descriptor(1, buffers.address + 512, 512, 3);
    descriptor(2, buffers.address + 16, 1, 2);
    const address64 = (register: number, offset: number): Promise<void>[] => [
      bar.write(register, 4, ring.address + offset),
      bar.write(register + 4, 4, 0),
    ];
    const notifyOffset = bar.read(CommonConfig.QUEUE_NOTIFY_OFF, 2);
    await Promise.all([
      bar.write(CommonConfig.QUEUE_SELECT, 2, 0),
      bar.write(CommonConfig.QUEUE_SIZE, 2, size),
      ...address64(CommonConfig.QUEUE_DESC, 0),
      ...address64(CommonConfig.QUEUE_DRIVER, 64),
      ...address64(CommonConfig.QUEUE_DEVICE, 128),
      bar.write(CommonConfig.QUEUE_ENABLE, 2, 1),
    ]);
    view.setUint16(available + 2, 1, true);
    bar.post(NOTIFY + (await notifyOffset) * NOTIFY_MULTIPLIER, 2, 0);
    return {
      data: buffers.bytes.subarray(512, 1024),
      used: () => view.getUint16(usedRing + 2, true),
    };
  }

  /** Sets a queue up with one chain of `bytes` to read, and rings the doorbell. */
  async offer(queue: number, bytes: Uint8Array): Promise<void> {
    const bar = this.#bar;
    const { memory } = this.#machine;
    const ring = memory.allocate(4096, 4096);
    const buffer = memory.allocate(4096, 4096);
    buffer.bytes.set(bytes);
    const view = new DataView(memory.buffer);
    view.setUint32(ring.offset, buffer.address, true);
    view.setUint32(ring.offset + 8, bytes.length, true);
    const address64 = (register: number, offset: number): Promise<void>[] => [
      bar.write(register, 4, ring.address + offset),
      bar.write(register + 4, 4, 0),
    ];
    const select = bar.write(CommonConfig.QUEUE_SELECT, 2, queue);
    const notifyOffset = bar.read(CommonConfig.QUEUE_NOTIFY_OFF, 2);
    await Promise.all([
      select,
      bar.write(CommonConfig.QUEUE_SIZE, 2, 4),
      ...address64(CommonConfig.QUEUE_DESC, 0),
      ...address64(CommonConfig.QUEUE_DRIVER, 64),
      ...address64(CommonConfig.QUEUE_DEVICE, 128),
      bar.write(CommonConfig.QUEUE_ENABLE, 2, 1),
    ]);
    view.setUint16(ring.offset + 64 + 2, 1, true);
    bar.post(NOTIFY + (await notifyOffset) * NOTIFY_MULTIPLIER, 2, queue);
  }
}
