// What network and console drivers offer: endpoints in the shape of web streams.
import type { Attached } from "./attached.js";

/** A pair of streams that can also be iterated. */
export interface Endpoint {
  readonly name: string;
  readonly readable: ReadableStream<Uint8Array>;
  readonly writable: WritableStream<Uint8Array>;
  [Symbol.asyncIterator](): AsyncIterator<Uint8Array>;
}

/** vtnet. Chunks are Ethernet frames without FCS. */
export interface NetworkInterface extends Attached, Endpoint {
  readonly kind: "network";
}

/** A console port. Chunks are bytes as they come. */
export interface Port extends Endpoint {
  readonly kind: "port";
  close(): Promise<void>;
}
