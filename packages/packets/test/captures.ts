import { readFileSync } from "node:fs";
import { Headers, type PcapFrame, readPcap } from "../src/index.js";

/** Our client in `slirp.pcap`. */
export const CLIENT = "52:54:00:12:34:56";

/** The bytes of a capture beside this file. */
export function capture(name: string): Uint8Array {
  return readFileSync(new URL(`captures/${name}`, import.meta.url));
}

/** The frames of a capture. */
export function framesOf(name: string): PcapFrame[] {
  return readPcap(capture(name));
}

/** Headers of a frame that is whole. */
export function headersOf(frame: Uint8Array): Headers {
  const headers = new Headers();
  if (!headers.parse(frame, 0, frame.length)) throw new Error("the frame does not parse");
  return headers;
}
