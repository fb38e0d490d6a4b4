// A PCI bus of configuration spaces alone: bytes, and masks of what a driver may change.
import { DmaWindow, type PciBus, type PciFunction, VirtioFault } from "@virtio/core";
import { PciBridgeRegister, PciCommand, PciRegister } from "@virtio/core/pci";

/** A BAR: its register, bytes, and type bits (1 I/O, 4 wide, 8 prefetchable). */
interface FakeBar {
  readonly index: number;
  readonly length: number;
  readonly type?: number;
}

/** What a function is. */
export interface FakeSpec {
  readonly bus?: number;
  readonly bars?: readonly FakeBar[];
  /** A bridge to this bus; its optional windows, with the type bits of their registers. */
  readonly bridge?: { readonly to: number; readonly io?: 0 | 1; readonly prefetchable?: 0 | 1 };
}

/** One access to configuration space. */
export interface FakeAccess {
  readonly fn: FakeFunction;
  readonly write: boolean;
  readonly offset: number;
  readonly value: number;
}

const BRIDGE = 1;

/** A function: registers as a test wants them. */
export class FakeFunction implements PciFunction {
  readonly bytes = new Uint8Array(256);
  readonly masks = new Uint8Array(256);
  readonly address: PciFunction["address"];
  readonly spec: FakeSpec;
  present = true;
  /** Sees each access. */
  onAccess: (access: FakeAccess) => void = () => {};
  readonly gone = new Promise<VirtioFault>(() => {});
  readonly interrupts: PciFunction["interrupts"] = {
    irq: 0,
    deliverable: [],
    message: async () => ({ address: 0, data: 0 }),
    line: async () => {},
    release: () => {},
  };

  constructor(device: number, spec: FakeSpec = {}) {
    const { bus = 0, bars = [], bridge } = spec;
    this.spec = spec;
    this.address = { domain: 0, bus, device, function: 0 };
    this.set(PciRegister.VENDOR_ID, 4, 0x1042_1af4);
    const { IO, MEMORY, BUS_MASTER, INTX_DISABLE } = PciCommand;
    this.mask(PciRegister.COMMAND, 2, IO | MEMORY | BUS_MASTER | INTX_DISABLE);
    for (const { index, length, type = 0 } of bars) {
      const register = PciRegister.BAR0 + 4 * index;
      const fixed = (type & 1) === 0 ? 15 : 3;
      const mask = 2 ** 64 - length;
      this.set(register, 4, type);
      this.mask(register, 4, ((length >= 2 ** 32 ? 0 : -length) & ~fixed) >>> 0);
      if ((type & 4) !== 0) this.mask(register + 4, 4, Math.floor(mask / 2 ** 32) % 2 ** 32);
    }
    if (bridge === undefined) return;
    const { to, io, prefetchable } = bridge;
    this.set(PciRegister.HEADER_TYPE, 1, BRIDGE);
    this.set(PciBridgeRegister.SECONDARY_BUS, 1, to);
    this.mask(PciBridgeRegister.MEMORY_BASE, 4, 0xfff0_fff0);
    if (io !== undefined) {
      this.set(PciBridgeRegister.IO_BASE, 2, io * 0x101);
      this.mask(PciBridgeRegister.IO_BASE, 2, 0xf0f0);
      if (io === 1) this.mask(PciBridgeRegister.IO_BASE_UPPER, 4, 0xffff_ffff);
    }
    if (prefetchable !== undefined) {
      this.set(PciBridgeRegister.PREFETCHABLE_BASE, 4, prefetchable * 0x1_0001);
      this.mask(PciBridgeRegister.PREFETCHABLE_BASE, 4, 0xfff0_fff0);
      if (prefetchable === 1) {
        this.mask(PciBridgeRegister.PREFETCHABLE_BASE_UPPER, 4, 0xffff_ffff);
        this.mask(PciBridgeRegister.PREFETCHABLE_LIMIT_UPPER, 4, 0xffff_ffff);
      }
    }
  }

  get(offset: number, width: 1 | 2 | 4): number {
    let value = 0;
    for (let i = width - 1; i >= 0; i--) value = value * 256 + (this.bytes[offset + i] ?? 0);
    return value;
  }

  set(offset: number, width: 1 | 2 | 4, value: number): void {
    for (let i = 0; i < width; i++) this.bytes[offset + i] = (value >>> (8 * i)) & 0xff;
  }

  mask(offset: number, width: 1 | 2 | 4, value: number): void {
    for (let i = 0; i < width; i++) this.masks[offset + i] = (value >>> (8 * i)) & 0xff;
  }

  async read(offset: number, width: 1 | 2 | 4): Promise<number> {
    this.#check(offset, width);
    const value = this.get(offset, width);
    this.onAccess({ fn: this, write: false, offset, value });
    return value;
  }

  async write(offset: number, width: 1 | 2 | 4, value: number): Promise<void> {
    this.#check(offset, width);
    if (!Number.isInteger(value) || value < 0 || value >= 2 ** (8 * width))
      throw new VirtioFault("INVALID", `${value} does not fit ${width} bytes`);
    for (let i = 0; i < width; i++) {
      const mask = this.masks[offset + i] ?? 0;
      const byte = (value >>> (8 * i)) & 0xff;
      this.bytes[offset + i] = ((this.bytes[offset + i] ?? 0) & ~mask) | (byte & mask);
    }
    this.onAccess({ fn: this, write: true, offset, value });
  }

  #check(offset: number, width: number): void {
    if (!this.present) throw new VirtioFault("CLOSED", "it was taken out");
    if (offset % width !== 0 || offset + width > 256)
      throw new VirtioFault("INVALID", `${width} bytes at ${offset}`);
  }

  async mapBar(): Promise<never> {
    throw new VirtioFault("UNSUPPORTED", "configuration space is all there is");
  }
}

/** A root with these functions, which a test may change. */
export class FakeBus implements PciBus {
  readonly memory = new DmaWindow(new ArrayBuffer(4096));
  readonly tasks: PciBus["tasks"] = {
    now: () => 0,
    enqueue: (task) => void Promise.resolve().then(task),
    callout: () => ({ stop: () => {} }),
  };
  readonly windows: PciBus["windows"];
  onChange: PciBus["onChange"] = null;
  list: FakeFunction[];

  constructor(
    list: readonly FakeFunction[],
    windows: PciBus["windows"] = {
      memory: { base: 0xe000_0000, length: 0x1000_0000 },
      io: { base: 0xc000, length: 0x4000 },
    },
  ) {
    this.list = [...list];
    this.windows = windows;
  }

  poll(): void {}

  async functions(): Promise<readonly FakeFunction[]> {
    return this.list.filter(({ present }) => present);
  }
}
