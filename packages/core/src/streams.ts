// What network and console drivers offer: endpoints in the shape of web streams.
/** A pair of streams that can also be iterated. */
export interface Endpoint {
  readonly name: string;
  readonly readable: ReadableStream<Uint8Array>;
  readonly writable: WritableStream<Uint8Array>;
  [Symbol.asyncIterator](): AsyncIterator<Uint8Array>;
}

/** A console port. Chunks are bytes as they come. */
export interface Port extends Endpoint {
  readonly kind: "port";
  /** The name that its device gives it: FreeBSD's /dev/vtcon/NAME. Empty: none. */
  readonly alias: string;
  /** Opened again by the next use of a stream. */
  close(): Promise<void>;
}
