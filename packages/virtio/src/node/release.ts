import { createRequire } from "node:module";

/** Version of this package. */
export const release: string = String(
  (createRequire(import.meta.url)("virtio/package.json") as { version: unknown }).version,
);
