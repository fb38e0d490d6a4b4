// What a CD-ROM has of its own: a table of contents, and events of its medium (MMC-6).
import { ScsiAsc, ScsiSenseKey } from "@virtio/core/scsi";
import { put16, put32 } from "@virtio/packets";
import { checkCondition, type ScsiCommand, type ScsiReply } from "./scsi-command.js";

const invalidField = (): ScsiReply =>
  checkCondition(ScsiSenseKey.ILLEGAL_REQUEST, ScsiAsc.INVALID_FIELD_IN_CDB);

/** READ TOC/PMA/ATIP, byte 1: addresses in minutes, seconds and frames. */
const MSF = 2;
/** Formats of the table. */
enum Format {
  TOC = 0,
  SESSIONS = 1,
}
/** A track of data, that can be copied. */
const DATA_TRACK = 0x14;
const LEAD_OUT = 0xaa;
const FRAMES_PER_SECOND = 75;
/** Frames before block 0. */
const PREGAP = 150;

/** GET EVENT STATUS NOTIFICATION, byte 1: answer at once. */
const POLLED = 1;
/** Notification class: media. */
const MEDIA_CLASS = 4;
/** Media events. */
enum MediaEvent {
  NO_CHANGE = 0,
  NEW_MEDIA = 2,
  MEDIA_REMOVAL = 3,
}

/** READ TOC/PMA/ATIP of a disc with one track. @param blocks - of the disc */
export function tableOfContents(command: ScsiCommand, blocks: number): ScsiReply {
  const msf = (command.byte(1) & MSF) !== 0;
  const format = command.byte(2) & 0x0f;
  const first = command.byte(6);
  if (format > Format.SESSIONS || (first > 1 && first !== LEAD_OUT)) return invalidField();
  const starts = format === Format.SESSIONS ? [[1, 0] as const] : tracks(first, blocks);
  const data = new Uint8Array(4 + 8 * starts.length);
  put16(data, 0, data.length - 2);
  data.set([1, 1], 2);
  for (const [i, [track, lba]] of starts.entries()) {
    const at = 4 + 8 * i;
    data.set([0, DATA_TRACK, track], at);
    if (msf) data.set([0, ...minutes(lba)], at + 4);
    else put32(data, at + 4, lba);
  }
  return command.answer(data, command.word16(7));
}

/** Tracks from this one on: number, first block. */
function tracks(first: number, blocks: number): (readonly [track: number, lba: number])[] {
  const leadOut = [LEAD_OUT, blocks] as const;
  return first === LEAD_OUT ? [leadOut] : [[1, 0], leadOut];
}

function minutes(lba: number): readonly number[] {
  const frames = lba + PREGAP;
  const seconds = Math.floor(frames / FRAMES_PER_SECOND);
  return [Math.floor(seconds / 60), seconds % 60, frames % FRAMES_PER_SECOND];
}

/** GET EVENT STATUS NOTIFICATION: what became of the medium since the last time. */
export function mediaEvents(
  command: ScsiCommand,
  changed: "came" | "went" | null,
  present: boolean,
): ScsiReply {
  if ((command.byte(1) & POLLED) === 0) return invalidField();
  const asked = (command.byte(4) & (1 << MEDIA_CLASS)) !== 0;
  const codes = { came: MediaEvent.NEW_MEDIA, went: MediaEvent.MEDIA_REMOVAL } as const;
  const code = changed === null ? MediaEvent.NO_CHANGE : codes[changed];
  const event = asked ? [code, present ? 2 : 0, 0, 0] : [];
  // Without a class that there is, only the header comes, and says so (NEA).
  const header = [0, 2 + event.length, asked ? MEDIA_CLASS : 0x80, 1 << MEDIA_CLASS];
  return command.answer(Uint8Array.from([...header, ...event]), command.word16(7));
}
