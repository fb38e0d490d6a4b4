// What differs between QEMU's two PC machines: the way to configuration space, and where interrupt pins end.
import { VirtioFault } from "@virtio/core";
import type { QtestClient, Width } from "./qtest.js";

/** I/O ports by which the machine tells of hot-plug, and takes a device out. */
export interface HotPlugPorts {
  /** Status and enable of ACPI's general-purpose events 0 to 7 (ACPI 6.4 §4.8.4.1). */
  readonly eventStatus: number;
  readonly eventEnable: number;
  /** QEMU's registers of the slots (QEMU docs/specs/acpi_pci_hotplug). */
  readonly slots: number;
}

/** Configuration space, and interrupt lines. Offsets are checked by the caller. */
export interface Chipset {
  /** Bytes of a function's configuration space. */
  readonly configSize: 256 | 4096;
  readonly hotPlug: HotPlugPorts;
  /** What firmware would do. Again after a reset of the machine. */
  setUp(): Promise<void>;
  /** @param rid routing id: bus number times 256, plus device number times 8, plus function number */
  read(rid: number, offset: number, width: Width): Promise<number>;
  write(rid: number, offset: number, width: Width, value: number): Promise<void>;
  /** The interrupt controller's input that `pin` (1 = INTA to 4 = INTD) of a device on bus 0 drives. */
  line(device: number, pin: number): number;
}

/** Input of the interrupt controller that both chipsets' ACPI interrupt drives while nobody routes it elsewhere. */
export const ACPI_LINE = 9;

/** The two I/O ports of configuration mechanism #1 (PCI 3.0 §3.2.2.3.2). */
const CONFIG_ADDRESS = 0xcf8;
const CONFIG_DATA = 0xcfc;

const selectConfig = (qtest: QtestClient, rid: number, offset: number): void =>
  qtest.post("io", CONFIG_ADDRESS, 4, (0x8000_0000 | (rid << 8) | (offset & 0xfc)) >>> 0);

/** Q35: register PCIEXBAR of the host bridge (Intel 3 Series datasheet): base of the memory-mapped configuration space, bit 0 enables. */
const PCIEXBAR = 0x60;
const ECAM_BASE = 0xb000_0000;

/** ICH9, device 31 function 0 (Intel ICH9 datasheet): base of its power management ports, bit 0 set; and ACPI_CNTL, bit 7 enables them. */
const ICH9_RID = 31 << 3;
const PMBASE = 0x40;
const ACPI_CNTL = 0x44;
const PM_PORTS = 0x600;

/** Memory-mapped configuration space: one request an access. */
export class Q35 implements Chipset {
  readonly configSize = 4096;
  readonly hotPlug: HotPlugPorts = {
    eventStatus: PM_PORTS + 0x20,
    eventEnable: PM_PORTS + 0x28,
    slots: 0xcc0,
  };
  readonly #qtest: QtestClient;

  constructor(qtest: QtestClient) {
    this.#qtest = qtest;
  }

  async setUp(): Promise<void> {
    selectConfig(this.#qtest, 0, PCIEXBAR);
    const done = this.#qtest.write("io", CONFIG_DATA, 4, (ECAM_BASE | 1) >>> 0);
    const [, host] = await Promise.all([done, this.read(0, 0, 2)]);
    if (host !== 0x8086)
      throw new VirtioFault(
        "DEVICE_MISBEHAVED",
        `q35: the host bridge's vendor id reads 0x${host.toString(16)} through ECAM, not 0x8086`,
      );
    await Promise.all([
      this.write(ICH9_RID, PMBASE, 4, PM_PORTS | 1),
      this.write(ICH9_RID, ACPI_CNTL, 1, 0x80),
    ]);
  }

  read(rid: number, offset: number, width: Width): Promise<number> {
    return this.#qtest.read("memory", ECAM_BASE + (rid << 12) + offset, width);
  }

  write(rid: number, offset: number, width: Width, value: number): Promise<void> {
    return this.#qtest.write("memory", ECAM_BASE + (rid << 12) + offset, width, value);
  }

  /**
   * ICH9's routing after reset: devices 0 to 24 and 30 rotate through, or take in order, PIRQE to PIRQH (inputs 20 to 23); the
   * devices inside the chip, 25 to 29 and 31, take PIRQA to PIRQD (16 to 19).
   */
  line(device: number, pin: number): number {
    if (device <= 24) return 20 + ((device + pin - 1) % 4);
    return (device === 30 ? 20 : 16) + pin - 1;
  }
}

/** PIIX3, device 1 function 0: PIRQRC, one byte for each of PIRQA to PIRQD: the interrupt it drives (Intel 82371SB datasheet). */
const PIIX3_RID = 1 << 3;
const PIRQ_ROUTING = 0x60;
const PIRQ_LINES: readonly number[] = [10, 10, 11, 11];

/** Configuration space through two ports: two requests an access. */
export class Pc implements Chipset {
  readonly configSize = 256;
  readonly hotPlug: HotPlugPorts = { eventStatus: 0xafe0, eventEnable: 0xafe2, slots: 0xae00 };
  readonly #qtest: QtestClient;

  constructor(qtest: QtestClient) {
    this.#qtest = qtest;
  }

  async setUp(): Promise<void> {
    await Promise.all(
      PIRQ_LINES.map((line, i) => this.write(PIIX3_RID, PIRQ_ROUTING + i, 1, line)),
    );
  }

  read(rid: number, offset: number, width: Width): Promise<number> {
    selectConfig(this.#qtest, rid, offset);
    return this.#qtest.read("io", CONFIG_DATA + (offset & 3), width);
  }

  write(rid: number, offset: number, width: Width, value: number): Promise<void> {
    selectConfig(this.#qtest, rid, offset);
    return this.#qtest.write("io", CONFIG_DATA + (offset & 3), width, value);
  }

  line(device: number, pin: number): number {
    return PIRQ_LINES[(device - 1 + pin - 1) & 3] ?? 0;
  }
}
