// cu as a user of the shell sees it: embedded and on QEMU, with the same words.
import type { Machine } from "@virtio/core";
import { embedded } from "@virtio/hypervisor";
import { qemu } from "@virtio/qemu";
import { Kernel, load, Shell, type StandardInput } from "virtio";
import { FileHost } from "virtio/node";
import { describe, expect, it, onTestFinished } from "vitest";
import { hasQemu } from "./machines.js";

/** A pipe that holds this text, for each command anew. */
const pipe = (text: string): StandardInput => ({
  terminal: false,
  open() {
    let left: Uint8Array | null = new TextEncoder().encode(text);
    return {
      async read() {
        const piece = left;
        left = null;
        return piece;
      },
      close() {},
    };
  },
});

/** What these lines print, standard output and standard error each for itself. */
async function run(machine: Machine, input: string, ...lines: readonly string[]) {
  const kernel = new Kernel({ machine, image: await load() });
  onTestFinished(() => kernel.shutdown());
  await kernel.boot();
  const printed = { out: "", err: "" };
  const shell = new Shell({
    kernel,
    host: new FileHost("."),
    input: pipe(input),
    out: (text) => {
      printed.out += text;
    },
    err: (text) => {
      printed.err += text;
    },
  });
  const statuses: number[] = [];
  for (const line of lines) statuses.push(await shell.run(line));
  return { ...printed, statuses };
}

describe("cu", () => {
  for (const [name, open] of [
    ["embedded", () => embedded({ devices: ["console,ports=3"] })],
    ["on QEMU (needs QEMU)", () => qemu({ devices: ["console,ports=3"] })],
  ] as const)
    it.skipIf(name !== "embedded" && !hasQemu)(
      `sends its input to a port, prints what comes back and ends by itself: ${name}`,
      async () => {
        const { out, err, statuses } = await run(
          await open(),
          "one line\nand another~.\n",
          "cu -l ttyV0.0; cu -l /dev/ttyV0.2",
          "sysctl dev.vtcon.0.port2.obytes dev.vtcon.0.port2.ibytes dev.vtcon.0.port2.opened",
          "cu -l ttyV0.3",
          "devinfo",
        );
        expect(statuses).toEqual([0, 0, 1, 0]);
        expect(out).toContain(
          [
            ..."one line\nand another~.\none line\nand another~.\n".split("\n").slice(0, -1),
            "dev.vtcon.0.port2.obytes: 23",
            "dev.vtcon.0.port2.ibytes: 23",
            "dev.vtcon.0.port2.opened: 0",
          ].join("\n"),
        );
        expect(out).toContain("vtcon0");
        expect(err).toBe(
          `${"Connected\n\n[EOT]\n".repeat(2)}cu: ttyV0.3: No such file or directory (ports: ttyV0.0, ttyV0.1, ttyV0.2)\n`,
        );
      },
    );
});
