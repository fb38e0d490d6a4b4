// Who a unit is: standard INQUIRY data (SPC-4), in CAM's words.
import { SCSI_INQUIRY_SIZE } from "@virtio/core/scsi";

/** Peripheral qualifier and type in one byte. */
const QUALIFIER_SHIFT = 5;
const TYPE_MASK = 0x1f;
const REMOVABLE = 0x80;
/** Of byte 7. */
const CMDQUE = 2;

const typeNames: readonly string[] = [
  "Direct Access",
  "Sequential Access",
  "Printer",
  "Processor",
  "WORM",
  "CD-ROM",
  "Scanner",
  "Optical",
  "Changer",
  "Communication",
  "ASC Pre-Press",
  "ASC Pre-Press",
  "Storage Array",
  "Enclosure Services",
  "Simplified Direct Access",
  "Optical Card Read/Write",
  "Unknown",
  "Object-Based Storage",
  "Automation/Drive Interface",
  "Security Manager",
  "Host Managed Zoned Block",
];

/** What INQUIRY says. */
export interface Inquiry {
  readonly vendor: string;
  readonly product: string;
  readonly revision: string;
  /** Peripheral device type. */
  readonly type: number;
  readonly removable: boolean;
  /** CMDQUE */
  readonly queueing: boolean;
  /** `Fixed Direct Access SPC-3 SCSI device` */
  readonly description: string;
}

/** Null: there is no unit here, as the qualifier says, or it is too short. */
export function parseInquiry(bytes: Uint8Array): Inquiry | null {
  if (bytes.length < SCSI_INQUIRY_SIZE) return null;
  const first = bytes[0] as number;
  if (first >>> QUALIFIER_SHIFT !== 0) return null;
  const type = first & TYPE_MASK;
  const removable = ((bytes[1] as number) & REMOVABLE) !== 0;
  const description = [
    removable ? "Removable" : "Fixed",
    typeNames[type] ?? "Unknown",
    standard(bytes[2] as number),
    "device",
  ];
  return {
    vendor: text(bytes, 8, 16),
    product: text(bytes, 16, 32),
    revision: text(bytes, 32, 36),
    type,
    removable,
    queueing: ((bytes[7] as number) & CMDQUE) !== 0,
    description: description.join(" "),
  };
}

/** The standard that a unit claims, as scsi_print_inquiry says it. */
function standard(version: number): string {
  if (version === 0) return "SCSI";
  return version <= 2 ? `SCSI-${version}` : `SPC-${version - 2} SCSI`;
}

/** ASCII, blanks at the ends taken away; what is not printable shows as a question mark. */
export function text(bytes: Uint8Array, from = 0, to: number = bytes.length): string {
  return Array.from(bytes.subarray(from, to), (byte) =>
    byte >= 0x20 && byte < 0x7f ? String.fromCharCode(byte) : byte === 0 ? " " : "?",
  )
    .join("")
    .trim();
}
