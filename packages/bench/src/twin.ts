// The twins in C: built from native/ when asked for.
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Shape } from "./shape.js";

const native = fileURLToPath(new URL("../native/", import.meta.url));

/** Twins of both formats, with the checks (`safe`) and without (`unchecked`). */
export interface Twins {
  /** The command of one. */
  command(kind: "safe" | "unchecked", shape: Shape): readonly string[];
  remove(): void;
}

/** Compiles them with `cc -O2` into a folder of their own. */
export function buildTwins(): Twins {
  const folder = mkdtempSync(join(tmpdir(), "virtio-bench-"));
  const path = (kind: string, format: string): string => join(folder, `${format}-${kind}`);
  for (const format of ["split", "packed"])
    for (const [kind, checked] of [
      ["safe", 1],
      ["unchecked", 0],
    ] as const) {
      const args = ["-O2", "-std=gnu11", "-pthread", `-DCHECKED=${checked}`];
      execFileSync("cc", [...args, "-o", path(kind, format), join(native, `${format}.c`)], {
        stdio: ["ignore", "inherit", "inherit"],
      });
    }
  return {
    command: (kind, { format, batch, threads, segments, indirect, queues }) =>
      [path(kind, format), batch, threads, segments, Number(indirect), queues].map(String),
    remove: () => rmSync(folder, { recursive: true }),
  };
}
