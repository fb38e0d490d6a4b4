// daN and cdN: a disk over the commands of one unit (FreeBSD's da(4) and cd(4)).
import {
  type Callout,
  type DriverContext,
  Errno,
  type ScsiSenseData,
  VirtioFault,
} from "@virtio/core";
import { ScsiOpcode, ScsiPeripheral, ScsiResponse, ScsiStatus } from "@virtio/core/scsi";
import {
  type Bio,
  BioCommand,
  type DiskEvents,
  type DiskProvider,
  type RangeLimits,
  StrategyDisk,
} from "@virtio/storage";
import { Ccb, Direction, noData } from "./ccb.js";
import { readCapacity } from "./commands.js";
import {
  checkedCapacity,
  DeleteMethod,
  type DiskGeometry,
  FlushMethod,
  readDiskGeometry,
} from "./disk-geometry.js";
import type { LogicalUnit } from "./logical-unit.js";
import { isGood, judge, mayRetry, RETRY_MS, Retry } from "./outcome.js";
import { hex } from "./pass.js";
import type { Found } from "./scan.js";
import type { Sim } from "./sim.js";

/** Bits of the second byte of WRITE and of WRITE SAME. */
const FUA = 8;
const UNMAP = 8;
/** Bytes of the parameter list of UNMAP: a header, and one descriptor (SBC-3 §5.28). */
const UNMAP_LIST = 24;
const UNMAP_DESCRIPTOR = 8;
/** Blocks and transfers that a CDB of 10 bytes can name. */
const LBA_10_END = 0x1_0000_0000;
const BLOCKS_10_MAX = 0xffff;
/** What cam_calc_geometry says of disks of more, and of less, than a gigabyte. */
const GIGABYTE = 2 ** 30;

/** What a disk needs besides its unit. */
export interface ScsiDiskOptions {
  readonly sim: Sim;
  readonly context: DriverContext;
  /** Milliseconds. */
  readonly timeout: number;
  /** That disks of this bus have. */
  readonly names: ReadonlySet<string>;
}

/** A command of a disk, and what it is for. */
class DiskCcb extends Ccb {
  bio: Bio | null = null;
  /** Parameter list of an UNMAP. */
  readonly list: { readonly data: Uint8Array } = { data: new Uint8Array(UNMAP_LIST) };
}

/** One unit of type direct access or CD-ROM. */
export class ScsiDisk implements DiskProvider {
  /** `da0` */
  name = "";
  readonly ident: string;
  /** The disk that stands over this. */
  readonly disk: StrategyDisk;
  mediaSize: number;
  readonly sectorSize: number;
  readonly stripeSize: number;
  readonly stripeOffset: number;
  readonly maxTransfer: number;
  readonly readOnly: boolean;
  readonly discard: RangeLimits | null;
  readonly writeZeroes: RangeLimits | null;
  readonly secureErase = null;
  readonly zones = null;
  /** Hosts do not look at task attributes, QEMU's for one: what is ordered is kept apart here. */
  readonly barrier = false;
  readonly closed: Promise<VirtioFault | null>;
  readonly poll?: () => boolean;
  readonly unit: LogicalUnit;
  readonly found: Found;
  readonly #geometry: DiskGeometry;
  readonly #sim: Sim;
  readonly #context: DriverContext;
  readonly #timeout: number;
  /** Commands that are not under way. */
  readonly #free: DiskCcb[] = [];
  /** Commands that are to be given again, and when. */
  readonly #later = new Map<DiskCcb, Callout>();
  /** What WRITE SAME writes. */
  readonly #zeroes: { readonly data: Uint8Array };
  #events: DiskEvents = { done: () => {}, room: () => {}, resized: () => {} };
  #fault: VirtioFault | null = null;
  #rechecking = false;
  #close: (fault: VirtioFault | null) => void = () => {};
  #unpublish: () => void = () => {};

  private constructor(found: Found, geometry: DiskGeometry, options: ScsiDiskOptions) {
    this.found = found;
    this.unit = found.unit;
    this.ident = found.serial;
    this.#geometry = geometry;
    this.mediaSize = geometry.mediaSize;
    this.sectorSize = geometry.sectorSize;
    this.stripeSize = geometry.stripeSize;
    this.stripeOffset = geometry.stripeOffset;
    this.maxTransfer = geometry.maxTransfer;
    this.readOnly = geometry.readOnly;
    this.discard = geometry.discard;
    this.writeZeroes = geometry.writeZeroes;
    this.#sim = options.sim;
    this.#context = options.context;
    this.#timeout = options.timeout;
    this.#zeroes = { data: new Uint8Array(geometry.sectorSize) };
    this.closed = new Promise((resolve) => {
      this.#close = resolve;
    });
    if (!options.sim.device.memory.shared) this.poll = () => this.#sim.poll();
    this.disk = new StrategyDisk(this);
  }

  /**
   * Learns what the disk is, gives it the first name that is free, and publishes it.
   * @throws VirtioFault: it is of no use
   */
  static async attach(found: Found, options: ScsiDiskOptions): Promise<ScsiDisk> {
    const geometry = await readDiskGeometry(options.sim, found);
    const disk = new ScsiDisk(found, geometry, options);
    disk.#publish(found.inquiry.type === ScsiPeripheral.CD_ROM ? "cd" : "da", options.names);
    disk.unit.onRoom = () => disk.#events.room();
    disk.#announce();
    return disk;
  }

  /** da0, da1 …: another adapter may have some of them. */
  #publish(driver: string, taken: ReadonlySet<string>): void {
    for (let unit = 0; ; unit++) {
      this.name = `${driver}${unit}`;
      if (taken.has(this.name)) continue;
      try {
        this.#unpublish = this.#context.publish(this.disk);
        return;
      } catch (fault) {
        if (!(fault instanceof VirtioFault && fault.code === "EXISTS")) throw fault;
      }
    }
  }

  /** As CAM does it (xpt_announce_periph). */
  #announce(): void {
    const { announce, name: adapter, unit: bus } = this.#context;
    const { vendor, product, revision, description, queueing } = this.found.inquiry;
    const { target, lun } = this.unit;
    announce(`${this.name} at ${adapter} bus 0 scbus${bus} target ${target} lun ${lun}`);
    this.#say(`<${vendor} ${product} ${revision}> ${description}`);
    if (this.ident !== "") this.#say(`Serial Number ${this.ident}`);
    this.#say("300.000MB/s transfers");
    if (queueing) this.#say("Command Queueing enabled");
    if (this.mediaSize > 0) this.#say(this.#size);
    else this.#say("Attempt to query device size failed: NOT READY, Medium not present");
  }

  #say(line: string): void {
    this.#context.announce(`${this.name}: ${line}`);
  }

  /** `64MB (131072 512 byte sectors)` */
  get #size(): string {
    const { mediaSize, sectorSize } = this;
    return `${Math.floor(mediaSize / 2 ** 20)}MB (${mediaSize / sectorSize} ${sectorSize} byte sectors)`;
  }

  get firmwareHeads(): number {
    return this.mediaSize > GIGABYTE ? 255 : 64;
  }

  get firmwareSectors(): number {
    return this.mediaSize > GIGABYTE ? 63 : 32;
  }

  now(): number {
    return this.#sim.device.tasks.now();
  }

  connect(events: DiskEvents): void {
    this.#events = events;
  }

  inPlace(data: Uint8Array): boolean {
    return data.buffer === this.#sim.device.memory.buffer;
  }

  // ── bios ────────────────────────────────────────────────────────────────────

  strategy(bio: Bio): boolean {
    if (this.#fault !== null) {
      this.#events.done(bio, this.#fault);
      return true;
    }
    if (
      bio.command === BioCommand.FLUSH &&
      this.#geometry.flush !== FlushMethod.SYNCHRONIZE_CACHE
    ) {
      this.#events.done(bio, this.unit.fault);
      return true;
    }
    const ccb = this.#free.pop() ?? this.#make();
    this.#build(ccb, bio);
    ccb.retries = 0;
    ccb.timeout = this.#timeout;
    if (this.unit.start(ccb)) return true;
    ccb.bio = null;
    this.#free.push(ccb);
    return false;
  }

  start(): void {
    this.#sim.start();
  }

  #make(): DiskCcb {
    const ccb = new DiskCcb(() => this.#done(ccb));
    return ccb;
  }

  /** SBC-3 §5. */
  #build(ccb: DiskCcb, bio: Bio): void {
    ccb.bio = bio;
    const { command, position, length } = bio;
    ccb.direction = command === BioCommand.READ ? Direction.IN : Direction.OUT;
    ccb.transfer = bio;
    const { cdb } = ccb;
    cdb.fill(0);
    const block = position / this.sectorSize;
    const blocks = length / this.sectorSize;
    switch (command) {
      case BioCommand.READ:
        this.#readOrWrite(cdb, ScsiOpcode.READ_10, ScsiOpcode.READ_16, block, blocks);
        return;
      case BioCommand.WRITE:
        this.#readOrWrite(cdb, ScsiOpcode.WRITE_10, ScsiOpcode.WRITE_16, block, blocks);
        if (this.#geometry.flush === FlushMethod.FUA) cdb[1] = FUA;
        return;
      case BioCommand.DISCARD:
        if (this.#geometry.deleteMethod === DeleteMethod.UNMAP) this.#unmap(ccb, block, blocks);
        else this.#writeSame(ccb, block, blocks, true);
        return;
      case BioCommand.WRITE_ZEROES:
        this.#writeSame(ccb, block, blocks, bio.unmap === true && this.#geometry.mayUnmap);
        return;
      default:
        // A flush: of all blocks (SBC-3 §5.18). Nothing else passes the disk's own checks.
        cdb[0] = ScsiOpcode.SYNCHRONIZE_CACHE_10;
        ccb.direction = Direction.NONE;
        ccb.transfer = noData;
    }
  }

  #readOrWrite(
    cdb: Uint8Array,
    short: ScsiOpcode,
    long: ScsiOpcode,
    block: number,
    blocks: number,
  ): void {
    if (block + blocks <= LBA_10_END && blocks <= BLOCKS_10_MAX) {
      cdb[0] = short;
      put32(cdb, 2, block);
      cdb[7] = blocks >>> 8;
      cdb[8] = blocks;
      return;
    }
    cdb[0] = long;
    put64(cdb, 2, block);
    put32(cdb, 10, blocks);
  }

  #writeSame(ccb: DiskCcb, block: number, blocks: number, unmap: boolean): void {
    const { cdb } = ccb;
    cdb[0] = ScsiOpcode.WRITE_SAME_16;
    cdb[1] = unmap ? UNMAP : 0;
    put64(cdb, 2, block);
    put32(cdb, 10, blocks);
    ccb.transfer = this.#zeroes;
  }

  #unmap(ccb: DiskCcb, block: number, blocks: number): void {
    const { cdb } = ccb;
    const { data: list } = ccb.list;
    cdb[0] = ScsiOpcode.UNMAP;
    cdb[8] = UNMAP_LIST;
    // Data length, and block descriptor data length (SBC-3 §5.28.2).
    list[1] = UNMAP_LIST - 2;
    list[3] = UNMAP_LIST - UNMAP_DESCRIPTOR;
    put64(list, UNMAP_DESCRIPTOR, block);
    put32(list, UNMAP_DESCRIPTOR + 8, blocks);
    ccb.transfer = ccb.list;
  }

  #done(ccb: DiskCcb): void {
    if (isGood(ccb)) this.#over(ccb, null);
    else this.#failed(ccb);
  }

  #over(ccb: DiskCcb, fault: VirtioFault | null): void {
    const { bio } = ccb;
    ccb.bio = null;
    ccb.transfer = noData;
    this.#free.push(ccb);
    if (bio !== null) this.#events.done(bio, fault);
  }

  #failed(ccb: DiskCcb): void {
    const { fault, retry, sense } = judge(ccb, this.name);
    if (fault === null) {
      const { residual } = ccb;
      this.#over(ccb, residual === 0 ? null : this.#fail("IO", `${residual} bytes were not moved`));
      return;
    }
    // Nobody waits for one that has no bytes any more.
    const given = ccb.direction === Direction.NONE || ccb.transfer.data !== null;
    if (mayRetry(ccb, retry) && given && this.#fault === null) this.#again(ccb, retry);
    else {
      this.#report(ccb, sense, fault);
      this.#over(ccb, fault);
    }
  }

  #again(ccb: DiskCcb, retry: Retry): void {
    ccb.retries += 1;
    const { tasks } = this.#sim.device;
    const callout = tasks.callout(retry === Retry.NOW ? 0 : RETRY_MS, () => {
      this.#later.delete(ccb);
      this.unit.submit(ccb);
      this.#sim.start();
      this.#events.room();
    });
    this.#later.set(ccb, callout);
  }

  /** What CAM says of a command that failed for good. */
  #report(ccb: Ccb, sense: ScsiSenseData | null, fault: VirtioFault): void {
    // Of a unit that is gone that is said once.
    if (fault.code === "CLOSED") return;
    const { target, lun } = this.unit;
    const path = `(${this.name}:${this.#context.name}:0:${target}:${lun}):`;
    const opcode = ccb.cdb[0] as number;
    const name = (ScsiOpcode[opcode] ?? `opcode ${opcode}`).replace(/_(\d+)$/, "($1)");
    const say = (line: string): void => this.#context.announce(`${path} ${line}`);
    say(`${name.replaceAll("_", " ")}. CDB: ${hex(ccb.cdb.subarray(0, cdbLength(opcode)))}`);
    if (ccb.fault === null && ccb.response === ScsiResponse.OK) {
      say("CAM status: SCSI Status Error");
      say(`SCSI status: ${statusName(ccb.status)}`);
      if (sense !== null) say(`SCSI sense: ${sense.text}`);
    } else say(`CAM status: ${fault.code === "TIMED_OUT" ? "Command timeout" : fault.message}`);
    say(
      `Error ${Errno[fault.errno]}, ${ccb.retries > 0 ? "Retries exhausted" : "Unretryable error"}`,
    );
  }

  // ── changes ─────────────────────────────────────────────────────────────────

  /** Its capacity, or its medium, changed. Never rejects. */
  async recheck(): Promise<void> {
    if (this.#rechecking || this.#fault !== null) return;
    this.#rechecking = true;
    try {
      const { blocks, blockSize } = checkedCapacity(await readCapacity(this.#sim, this.unit));
      if (blockSize !== this.sectorSize)
        throw this.#fail("UNSUPPORTED", `its blocks have ${blockSize} bytes now`);
      this.#resize(blocks * blockSize);
    } catch (fault) {
      if (this.#fault === null && this.unit.fault === null) {
        this.#say(`cannot read the capacity: ${String(fault)}`);
      }
    } finally {
      this.#rechecking = false;
    }
  }

  /** The medium was taken out. */
  noMedium(): void {
    this.#resize(0);
  }

  #resize(mediaSize: number): void {
    if (mediaSize === this.mediaSize || this.#fault !== null) return;
    this.mediaSize = mediaSize;
    this.#say(this.#size);
    this.#sim.device.tasks.enqueue(() => this.#events.resized());
  }

  /** It takes nothing any more. */
  get ended(): boolean {
    return this.#fault !== null;
  }

  /** Gone, or its adapter is: what waits ends, and what the unit still has ends by the unit. */
  end(fault: VirtioFault, orderly: boolean): void {
    if (this.#fault !== null) return;
    this.#fault = fault;
    this.#unpublish();
    if (this.unit.onRoom !== null) this.unit.onRoom = null;
    for (const [ccb, callout] of [...this.#later]) {
      callout.stop();
      this.#later.delete(ccb);
      this.#over(ccb, fault);
    }
    this.#events.room();
    this.#close(orderly ? null : fault);
  }

  /** Takes the disk away; its unit can still be given commands by hand. */
  async detach(): Promise<void> {
    this.end(this.#fail("CLOSED", "the disk is detached"), true);
  }

  /** A unit has no suspend of its own: the adapter has. */
  async suspend(): Promise<void> {}
  async resume(): Promise<void> {}

  #fail(code: VirtioFault["code"], what: string): VirtioFault {
    return new VirtioFault(code, what, { device: this.name });
  }
}

/** `Check Condition` */
const statusName = (status: number): string =>
  (ScsiStatus[status] ?? String(status))
    .replaceAll("_", " ")
    .replaceAll(/\B\w+/g, (letters) => letters.toLowerCase());

/** By the group of the operation code (SPC-4 §4.2.5.1). */
function cdbLength(opcode: number): number {
  return [6, 10, 10, 32, 16, 12, 32, 32][opcode >>> 5] as number;
}

function put32(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 24;
  bytes[at + 1] = value >>> 16;
  bytes[at + 2] = value >>> 8;
  bytes[at + 3] = value;
}

function put64(bytes: Uint8Array, at: number, value: number): void {
  put32(bytes, at, Math.floor(value / 0x1_0000_0000));
  put32(bytes, at + 4, value >>> 0);
}
