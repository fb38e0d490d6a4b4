// The balloon as a user of the shell sees it: embedded and on QEMU, with the same words.
import { tmpdir } from "node:os";
import type { Machine } from "@virtio/core";
import { BalloonPort, balloon, embedded } from "@virtio/hypervisor";
import { qemu } from "@virtio/qemu";
import { Kernel, load, parseKernelConf, Shell } from "virtio";
import { FileHost } from "virtio/node";
import { describe, expect, it, onTestFinished } from "vitest";
import { hasQemu } from "./machines.js";

const PAGE = 4096;
const MEMORY = 128 << 20;

/** A machine with a balloon, and its owner: sets the pages that the device wants, and says how many it has. */
interface Owned {
  readonly machine: Machine;
  readonly want: (pages: number) => Promise<unknown>;
  readonly has: () => Promise<number>;
}

const machines: Readonly<Record<"embedded" | "qemu", () => Promise<Owned>>> = {
  async embedded() {
    const port = new BalloonPort();
    return {
      machine: await embedded({ devices: [balloon({ port })] }),
      want: async (pages) => {
        port.target = pages;
      },
      has: async () => port.actual,
    };
  },
  async qemu() {
    const machine = await qemu({ devices: ["balloon"] });
    const { qmp } = machine;
    return {
      machine,
      want: (pages) => qmp.execute("balloon", { value: MEMORY - pages * PAGE }),
      has: async () => {
        const { actual } = (await qmp.execute("query-balloon")) as { actual: number };
        return (MEMORY - actual) / PAGE;
      },
    };
  },
};

/** A shell on a machine whose kernel has the transport alone compiled in. */
async function shellOn(machine: Machine): Promise<(line: string) => Promise<string>> {
  const image = await load({ kernelConf: parseKernelConf("device virtio\ndevice virtio_pci\n") });
  const kernel = new Kernel({ machine, image });
  await kernel.boot();
  let said = "";
  const out = (text: string): void => {
    said += text;
  };
  const shell = new Shell({ kernel, host: new FileHost(tmpdir()), out, err: out });
  onTestFinished(async () => {
    await shell.close();
    await kernel.shutdown();
  });
  return async (line) => {
    said = "";
    expect(await shell.run(line), said).toBe(0);
    return said;
  };
}

describe("sysctl dev.vtballoon.0", () => {
  for (const [name, open] of Object.entries(machines))
    it.skipIf(name === "qemu" && !hasQemu)(
      `shows what the device wants and has, and kldunload gives it all back, on ${name}${name === "qemu" ? " (needs QEMU)" : ""}`,
      async () => {
        const { machine, want, has } = await open();
        const run = await shellOn(machine);
        await run("kldload virtio_balloon");
        expect(await run("dmesg")).toMatch(
          /^vtballoon0: <VirtIO Balloon Adapter> on virtio_pci0$/m,
        );
        const size = async (): Promise<string> =>
          (await run("sysctl dev.vtballoon.0"))
            .split("\n")
            .filter((line) => /(current|desired)/.test(line))
            .join("; ");
        const shows = async (desired: number, current: number): Promise<void> => {
          const wanted = `dev.vtballoon.0.current: ${current}; dev.vtballoon.0.desired: ${desired}`;
          const deadline = Date.now() + 5000;
          while ((await size()) !== wanted && Date.now() < deadline)
            await new Promise((resolve) => setImmediate(resolve));
          expect(await size()).toBe(wanted);
        };
        await shows(0, 0);
        await want(3000);
        await shows(3000, 3000);
        await want(500);
        await shows(500, 500);
        expect(await run("sysctl -d dev.vtballoon.0.current")).toBe(
          "dev.vtballoon.0.current: Current balloon size in pages\n",
        );
        await run("kldunload virtio_balloon");
        expect(await has()).toBe(0);
        await run("kldload virtio_balloon");
        await shows(500, 500);
      },
    );
});
