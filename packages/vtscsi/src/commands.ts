// Commands of the driver's own: to find units and to learn what they are. Each is tried again where that helps, with a bound.
import { type TaskQueue, VirtioFault } from "@virtio/core";
import {
  SCSI_LUN_SIZE,
  ScsiModePage,
  ScsiOpcode,
  ScsiServiceAction,
  ScsiVpd,
} from "@virtio/core/scsi";
import { lunAt } from "./address.js";
import { Ccb, Direction } from "./ccb.js";
import type { LogicalUnit } from "./logical-unit.js";
import { judge, mayRetry, RETRY_MS, Retry } from "./outcome.js";
import type { Sim } from "./sim.js";

/** How long such a command may take, milliseconds. */
const TIMEOUT_MS = 5000;
/** Bytes asked for of pages of which most have a few dozen. */
const PAGE_BYTES = 252;
const INQUIRY_BYTES = 96;
/** Bytes asked for of REPORT LUNS: at first, and at most. */
const LUNS_BYTES = 4096;
const LUNS_BYTES_MAX = 8 + 16384 * SCSI_LUN_SIZE;
const EVPD = 1;
/** MODE SENSE: no block descriptors. */
const DBD = 8;

/** @returns bytes that `into` got. @throws VirtioFault why it was not done */
async function ask(
  sim: Sim,
  unit: LogicalUnit,
  cdb: readonly number[],
  into: Uint8Array | null = null,
  timeout: number = TIMEOUT_MS,
): Promise<number> {
  const ccb = new Ccb(() => {});
  ccb.cdb.set(cdb);
  ccb.timeout = timeout;
  if (into !== null) {
    ccb.direction = Direction.IN;
    ccb.transfer = { data: into };
  }
  const device = `${sim.name} target ${unit.target} lun ${unit.lun}`;
  for (;;) {
    await new Promise<void>((resolve) => {
      ccb.done = () => resolve();
      unit.submit(ccb);
      sim.start();
    });
    const { fault, retry } = judge(ccb, device);
    if (fault === null) return (into?.length ?? 0) - ccb.residual;
    if (!mayRetry(ccb, retry)) throw fault;
    ccb.retries += 1;
    if (retry === Retry.LATER) await sleep(sim.device.tasks, RETRY_MS);
  }
}

const sleep = (tasks: TaskQueue, ms: number): Promise<void> =>
  new Promise((resolve) => {
    tasks.callout(ms, resolve);
  });

/** @throws VirtioFault */
export async function testUnitReady(sim: Sim, unit: LogicalUnit): Promise<void> {
  await ask(sim, unit, [ScsiOpcode.TEST_UNIT_READY]);
}

/** Standard INQUIRY data, as much as there is. @throws VirtioFault */
export async function inquiry(sim: Sim, unit: LogicalUnit): Promise<Uint8Array> {
  const into = new Uint8Array(INQUIRY_BYTES);
  const length = await ask(sim, unit, [ScsiOpcode.INQUIRY, 0, 0, 0, INQUIRY_BYTES], into);
  return into.subarray(0, length);
}

/** A page of vital product data without its header; empty: there is no such page, or it is another one. @throws VirtioFault */
export async function vitalProductData(
  sim: Sim,
  unit: LogicalUnit,
  page: ScsiVpd,
): Promise<Uint8Array> {
  const into = new Uint8Array(PAGE_BYTES);
  const length = await ask(sim, unit, [ScsiOpcode.INQUIRY, EVPD, page, 0, PAGE_BYTES], into);
  if (length < 4 || into[1] !== page) return into.subarray(0, 0);
  return into.subarray(4, Math.min(length, 4 + (into[3] as number)));
}

/** The pages of vital product data that there are; empty where the unit has none of them. @throws VirtioFault */
export async function supportedPages(sim: Sim, unit: LogicalUnit): Promise<ReadonlySet<number>> {
  try {
    return new Set(await vitalProductData(sim, unit, ScsiVpd.SUPPORTED_PAGES));
  } catch (fault) {
    if (isRefusal(fault)) return new Set();
    throw fault;
  }
}

/** The LUNs of the target of `unit`, of those that are addressed as LUNs of one level. @throws VirtioFault */
export async function reportLuns(sim: Sim, unit: LogicalUnit): Promise<readonly number[]> {
  const most = Math.min(LUNS_BYTES_MAX, sim.host.maxTransfer);
  for (let size = Math.min(LUNS_BYTES, most); ; size = most) {
    const into = new Uint8Array(size);
    const words = new DataView(into.buffer);
    const cdb = new Array<number>(12).fill(0);
    cdb[0] = ScsiOpcode.REPORT_LUNS;
    for (let i = 0; i < 4; i++) cdb[6 + i] = (size >>> (24 - 8 * i)) & 0xff;
    const length = await ask(sim, unit, cdb, into);
    if (length < 8) throw new VirtioFault("IO", `REPORT LUNS gave ${length} bytes`);
    const listed = words.getUint32(0);
    if (8 + listed > size && size < most) continue;
    const end = Math.min(length, 8 + listed);
    const luns = new Set<number>();
    for (let at = 8; at + SCSI_LUN_SIZE <= end; at += SCSI_LUN_SIZE) {
      const lun = lunAt(into, at);
      if (lun !== null && lun <= sim.host.maxLun) luns.add(lun);
    }
    return [...luns].sort((a, b) => a - b);
  }
}

/** What READ CAPACITY says. */
export interface Capacity {
  readonly blocks: number;
  /** Bytes. */
  readonly blockSize: number;
  /** Blocks of a physical block, as a power of two; and the first block that begins one. */
  readonly physicalExponent: number;
  readonly lowestAligned: number;
  /** Thin: it can be unmapped (LBPME), and what was reads as zeroes (LBPRZ). */
  readonly thin: boolean;
  readonly readsZeroes: boolean;
}

/** READ CAPACITY(16), and where a unit has none (10). @throws VirtioFault */
export async function readCapacity(sim: Sim, unit: LogicalUnit): Promise<Capacity> {
  try {
    return await readCapacity16(sim, unit);
  } catch (fault) {
    if (!isRefusal(fault)) throw fault;
  }
  const into = new Uint8Array(8);
  const length = await ask(sim, unit, [ScsiOpcode.READ_CAPACITY_10], into);
  if (length < 8) throw new VirtioFault("IO", `READ CAPACITY(10) gave ${length} bytes`);
  const words = new DataView(into.buffer);
  return {
    blocks: words.getUint32(0) + 1,
    blockSize: words.getUint32(4),
    physicalExponent: 0,
    lowestAligned: 0,
    thin: false,
    readsZeroes: false,
  };
}

async function readCapacity16(sim: Sim, unit: LogicalUnit): Promise<Capacity> {
  const into = new Uint8Array(32);
  const cdb = new Array<number>(16).fill(0);
  cdb[0] = ScsiOpcode.SERVICE_ACTION_IN_16;
  cdb[1] = ScsiServiceAction.READ_CAPACITY_16;
  cdb[13] = into.length;
  const length = await ask(sim, unit, cdb, into);
  if (length < 12) throw new VirtioFault("IO", `READ CAPACITY(16) gave ${length} bytes`);
  const words = new DataView(into.buffer);
  const provisioning = words.getUint8(14);
  return {
    blocks: words.getUint32(0) * 0x1_0000_0000 + words.getUint32(4) + 1,
    blockSize: words.getUint32(8),
    physicalExponent: words.getUint8(13) & 15,
    lowestAligned: words.getUint16(14) & 0x3fff,
    thin: (provisioning & 0x80) !== 0,
    readsZeroes: (provisioning & 0x40) !== 0,
  };
}

/** What MODE SENSE says. */
export interface Modes {
  readonly writeProtected: boolean;
  /** FUA is honoured. */
  readonly fua: boolean;
  /** It has a write cache (WCE). */
  readonly writeCache: boolean;
}

/** MODE SENSE(6) of all pages. Of a unit that does not do it: a cache that writes back. @throws VirtioFault */
export async function modes(sim: Sim, unit: LogicalUnit): Promise<Modes> {
  const into = new Uint8Array(PAGE_BYTES);
  const cdb = [ScsiOpcode.MODE_SENSE_6, DBD, ScsiModePage.ALL, 0, PAGE_BYTES];
  let length = 0;
  try {
    length = await ask(sim, unit, cdb, into);
  } catch (fault) {
    if (!isRefusal(fault)) throw fault;
  }
  if (length < 4) return { writeProtected: false, fua: false, writeCache: true };
  const [dataLength = 0, , parameter = 0, descriptors = 0] = into;
  const end = Math.min(length, 1 + dataLength);
  let writeCache = true;
  // Page code, length, and for the caching page WCE in the byte after.
  for (let at = 4 + descriptors; at + 3 <= end; at += 2 + (into[at + 1] as number))
    if (((into[at] as number) & 0x3f) === ScsiModePage.CACHING)
      writeCache = ((into[at + 2] as number) & 4) !== 0;
  return {
    writeProtected: (parameter & 0x80) !== 0,
    fua: (parameter & 0x10) !== 0,
    writeCache,
  };
}

/** Whether a unit has no SYNCHRONIZE CACHE. @throws VirtioFault */
export async function refusesSync(sim: Sim, unit: LogicalUnit): Promise<boolean> {
  try {
    await ask(sim, unit, [ScsiOpcode.SYNCHRONIZE_CACHE_10]);
    return false;
  } catch (fault) {
    if (isRefusal(fault)) return true;
    throw fault;
  }
}

/** ILLEGAL REQUEST: the unit does not know this command, or this of it. */
export const isRefusal = (fault: unknown): boolean =>
  fault instanceof VirtioFault && (fault.code === "UNSUPPORTED" || fault.code === "INVALID");
