// How camcontrol(8) writes bytes down: CDBs of hexadecimal numbers, and formats of what came in (cam_cdbparse(3)).
import { ScsiStatus } from "@virtio/core/scsi";
import { UsageError } from "../command.js";

/** `12 0 0 0 24 0`: hexadecimal numbers of a byte each. @throws UsageError */
export function parseBytes(text: string): Uint8Array {
  const words = text.split(/[\s,]+/).filter((word) => word !== "");
  return Uint8Array.from(words, (word) => {
    if (!/^(0x)?[0-9a-f]{1,2}$/i.test(word)) throw new UsageError(`'${word}' is no byte`);
    return Number.parseInt(word, 16);
  });
}

/** `Check Condition` */
export const statusName = (status: number): string =>
  (ScsiStatus[status] ?? String(status))
    .replaceAll("_", " ")
    .replaceAll(/\B\w+/g, (letters) => letters.toLowerCase());

/** Sixteen bytes a line. */
export function dump(bytes: Uint8Array): string {
  let text = "";
  for (let at = 0; at < bytes.length; at += 16) {
    const line = Array.from(bytes.subarray(at, at + 16), (byte) =>
      byte.toString(16).padStart(2, "0"),
    );
    text += `${line.join(" ")}\n`;
  }
  return text;
}

/**
 * Fields by a format: `i1` to `i4` numbers of so many bytes, `cN` so many characters, `zN` the same without blanks at the end, `sN` goes
 * to byte N, `s+N` over N bytes. Fields in braces name it: `{Vendor} z8`.
 * @throws UsageError
 */
export function decode(bytes: Uint8Array, format: string): string {
  let at = 0;
  const fields: string[] = [];
  for (const word of format.split(/\s+/).filter((each) => each !== "")) {
    const name = /^\{[^}]*\}$/.test(word);
    if (name) continue;
    const match = /^\*?([icz]|s\+?)(\d+)$/.exec(word);
    if (match === null) throw new UsageError(`'${word}' is no field of a format`);
    const [, kind, digits] = match;
    const size = Number(digits);
    if (kind === "s") at = size;
    else if (kind === "s+") at += size;
    else {
      const piece = bytes.subarray(at, at + size);
      at += size;
      if (kind !== "i") {
        const text = Array.from(piece, (byte) => String.fromCharCode(byte)).join("");
        fields.push(kind === "z" ? text.replace(/[ \0]+$/, "") : text);
      } else if (size >= 1 && size <= 4)
        fields.push(String(piece.reduce((sum, byte) => sum * 256 + byte, 0)));
      else throw new UsageError(`'${word}' is no field of a format`);
    }
  }
  return `${fields.join(" ")}\n`;
}
