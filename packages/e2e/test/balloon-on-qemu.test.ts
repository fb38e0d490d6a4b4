// vtballoon on QEMU's own balloon: its size, its events and its memory as QEMU has them.

import { type BalloonDevice, type VtballoonOptions, vtballoon } from "@virtio/balloon";
import type { BalloonOptions, MemoryRange } from "@virtio/core";
import { attach, probe } from "@virtio/pci-transport";
import { balloon, type QemuMachine, qemu } from "@virtio/qemu";
import { describe, expect, it, onTestFinished } from "vitest";
import { hasQemu } from "./machines.js";

const PAGE = 4096;
const MEMORY = 128 << 20;
const MARK = 0xa5;
const MARKS = 0xa5a5_a5a5;
/** Free pages are reported after seconds. */
const SLOW = { timeout: 20_000 };
/** Where QEMU has the first balloon. */
const DEVICE = "/machine/peripheral/balloon0";

interface Bench {
  readonly machine: QemuMachine;
  readonly device: BalloonDevice;
}

/** vtballoon on a QEMU that ends with the test. Free memory is full of marks. */
async function bench(options: BalloonOptions = {}, driver: VtballoonOptions = {}): Promise<Bench> {
  const machine = await qemu({ devices: [balloon(options)] });
  onTestFinished(() => machine.close());
  mark(machine);
  const [node] = await probe(machine.buses[0].bus);
  if (node === undefined) throw new Error("no device");
  return { machine, device: await attach(node, vtballoon(driver)) };
}

/** Writes to what is free. */
function mark({ memory }: QemuMachine): void {
  const ranges: MemoryRange[] = [];
  for (;;) {
    const range = memory.take({ align: PAGE, most: MEMORY });
    if (range === null) break;
    ranges.push(range);
  }
  for (const range of ranges) {
    new Uint8Array(memory.buffer, range.address - memory.base, range.length).fill(MARK);
    memory.give(range);
  }
}

/** Pages of guest memory that begin and end with a 32-bit word. */
function pagesOf({ memory }: QemuMachine, word: number): number {
  const words = new Uint32Array(memory.buffer);
  const each = PAGE / 4;
  let pages = 0;
  for (let at = 0; at < words.length; at += each)
    pages += Number(words[at] === word && words[at + each - 1] === word);
  return pages;
}

/** Sets the size that the guest is to have, by pages in the balloon, and waits until it has. */
async function inflate({ machine, device }: Bench, pages: number): Promise<void> {
  await machine.qmp.execute("balloon", { value: MEMORY - pages * PAGE });
  await device.reached();
}

/** Pages in the balloon, as QEMU has it. */
async function pagesInQemu({ qmp }: QemuMachine): Promise<number> {
  const { actual } = (await qmp.execute("query-balloon")) as { actual: number };
  return (MEMORY - actual) / PAGE;
}

/** Features that the driver accepted, and whether QEMU is content. */
async function status({
  qmp,
}: QemuMachine): Promise<{ broken: boolean; features: readonly string[] }> {
  const path = `${DEVICE}/virtio-backend`;
  const seen = (await qmp.execute("x-query-virtio-status", { path })) as {
    broken: boolean;
    "guest-features": { "dev-features"?: string[] };
  };
  const names = seen["guest-features"]["dev-features"] ?? [];
  return {
    broken: seen.broken,
    features: names.map((name) => name.replace(/^VIRTIO_BALLOON_F_(\w+):.*$/, "$1")).sort(),
  };
}

const until = async (done: () => boolean | Promise<boolean>): Promise<void> => {
  const deadline = Date.now() + 5000;
  while (!(await done())) {
    if (Date.now() > deadline) throw new Error("it never came");
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
};

describe.skipIf(!hasQemu)("vtballoon on QEMU", () => {
  for (const [what, options] of [
    ["legacy", { legacy: "on" }],
    ["modern, split rings", { legacy: undefined }],
    ["modern, packed rings", { legacy: undefined, packed: true }],
  ] as const)
    it(`gives and takes pages, which QEMU really takes away: ${what}`, async () => {
      const both = await bench(options);
      const { machine, device } = both;
      const sizes: number[] = [];
      machine.qmp.on("BALLOON_CHANGE", ({ data }) => {
        sizes.push((MEMORY - Number(data["actual"])) / PAGE);
      });
      const marked = pagesOf(machine, MARKS);
      await inflate(both, 5000);
      expect([device.current, await pagesInQemu(machine)]).toEqual([5000, 5000]);
      expect(marked - pagesOf(machine, MARKS)).toBe(5000);
      await inflate(both, 700);
      expect([device.current, await pagesInQemu(machine)]).toEqual([700, 700]);
      expect((await status(machine)).broken).toBe(false);
      await device.detach();
      expect([device.current, await pagesInQemu(machine)]).toEqual([0, 0]);
      // QEMU sends one such event a second.
      if (options.legacy === undefined) return;
      await until(() => sizes.at(-1) === 0);
    });

  it("tells QEMU of the guest's memory", async () => {
    const both = await bench();
    const { machine } = both;
    await inflate(both, 2000);
    await machine.qmp.execute("qom-set", {
      path: DEVICE,
      property: "guest-stats-polling-interval",
      value: 1,
    });
    let stats: Record<string, number> = {};
    await until(async () => {
      const property = "guest-stats";
      const seen = await machine.qmp.execute("qom-get", { path: DEVICE, property });
      stats = (seen as { stats: Record<string, number> }).stats;
      return stats["stat-total-memory"] === MEMORY - 2000 * PAGE;
    });
    expect(stats["stat-free-memory"]).toBe(machine.memory.available);
    expect(stats["stat-available-memory"]).toBe(machine.memory.available);
  });

  it(
    "reports free pages, which QEMU takes away, on the queue that QEMU numbers 3",
    SLOW,
    async () => {
      const { machine, device } = await bench({ features: { PAGE_REPORTING: true } });
      expect((await status(machine)).features).toEqual(["REPORTING", "STATS_VQ"]);
      await until(() => device.statistics.reported > MEMORY / 2);
      await until(() => pagesOf(machine, MARKS) < 64);
      expect(pagesOf(machine, 0)).toBeGreaterThan(MEMORY / 2 / PAGE);
      expect((await status(machine)).broken).toBe(false);
    },
  );

  it(
    "reports pages that keep their pattern, and hints during a migration, on queues 3 and 4",
    SLOW,
    async () => {
      const both = await bench(
        { features: { PAGE_REPORTING: true, PAGE_POISON: true, FREE_PAGE_HINT: true } },
        { pagePoison: 0xdead_beef },
      );
      const { machine, device } = both;
      expect((await status(machine)).features).toEqual([
        "FREE_PAGE_HINT",
        "PAGE_POISON",
        "REPORTING",
        "STATS_VQ",
      ]);
      await inflate(both, 100);
      await inflate(both, 0);
      await until(() => device.statistics.reported > MEMORY / 2);
      expect(pagesOf(machine, 0xdead_beef)).toBeGreaterThan(MEMORY / 2 / PAGE);
      // Slow enough for a few hints.
      await machine.qmp.execute("migrate-set-parameters", { "max-bandwidth": MEMORY });
      await machine.qmp.execute("migrate", { uri: "exec:cat > /dev/null" });
      await until(async () => {
        const seen = (await machine.qmp.execute("query-migrate")) as { status: string };
        return seen.status === "completed";
      });
      // QEMU takes as many as it gets to meanwhile; migrated away, it answers no more.
      expect(device.statistics.hinted).toBeGreaterThan(0);
    },
  );

  it("gives pages back when the guest is out of memory, and tells QEMU", async () => {
    const both = await bench({ features: { DEFLATE_ON_OOM: true } }, { reserve: 0 });
    const { machine, device } = both;
    expect((await status(machine)).features).toEqual(["DEFLATE_ON_OOM", "STATS_VQ"]);
    await machine.qmp.execute("balloon", { value: 1 << 20 });
    await until(() => device.statistics.failures > 0);
    expect(machine.memory.available).toBeLessThan(4 * PAGE);
    const before = device.current;
    const region = machine.memory.allocate(300 * PAGE);
    expect(region.bytes.every((byte) => byte === 0)).toBe(true);
    expect([device.current, device.statistics.relieved]).toEqual([before - 512, 512]);
    await until(async () => (await pagesInQemu(machine)) === before - 512);
  });
});
