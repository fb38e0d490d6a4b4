// A SCSI host that lies: each command ends once, with one clear error, nothing hangs, and an honest host works again.
import type { EmbeddedScsiOptions, ScsiLies } from "@virtio/hypervisor";
import { embedded, MemoryBackend, scsi } from "@virtio/hypervisor";
import { attach, probe } from "@virtio/pci-transport";
import { virtualTime } from "@virtio/testing";
import { describe, expect, it } from "vitest";
import { vtscsi } from "../src/index.js";
import { bench, only, outcome, pattern, until } from "./attached.js";

const SECTOR = 512;
const READ_10 = 0x28;

/** A disk whose host begins to lie when it is told to. */
async function liar(lies: ScsiLies, options: EmbeddedScsiOptions = {}) {
  const state = { lying: false };
  const now =
    <A extends readonly unknown[], R>(lie: ((honest: R, ...rest: A) => R) | undefined) =>
    (honest: R, ...rest: A): R =>
      state.lying && lie !== undefined ? lie(honest, ...rest) : honest;
  const seen = await bench({
    ...options,
    lies: {
      ...lies,
      response: now(lies.response),
      status: now(lies.status),
      residual: now(lies.residual),
      senseLength: now(lies.senseLength),
      usedLength: now(lies.usedLength),
      sense: (sense, opcode) => {
        if (state.lying) lies.sense?.(sense, opcode);
      },
    },
  });
  return { ...seen, state, disk: only(seen.bus) };
}

const ofReads =
  (value: number) =>
  (honest: number, opcode: number): number =>
    opcode === READ_10 ? value : honest;

/** Ends of the driver's own commands and of commands by hand, by what the host says of reads. */
const lies: readonly (readonly [string, ScsiLies, disk: string, pass: string])[] = [
  ["OVERRUN", { response: ofReads(1) }, "IO EIO", "IO EIO"],
  ["ABORTED, again and again,", { response: ofReads(2) }, "IO EIO", "IO EIO"],
  ["BAD_TARGET", { response: ofReads(3) }, "CLOSED ENXIO", "CLOSED ENXIO"],
  ["RESET, again and again,", { response: ofReads(4) }, "IO EIO", "IO EIO"],
  ["TRANSPORT_FAILURE", { response: ofReads(6) }, "CLOSED ENXIO", "CLOSED ENXIO"],
  ["TARGET_FAILURE", { response: ofReads(7) }, "IO EIO", "IO EIO"],
  ["NEXUS_FAILURE", { response: ofReads(8) }, "CLOSED ENXIO", "CLOSED ENXIO"],
  ["FAILURE", { response: ofReads(9) }, "IO EIO", "IO EIO"],
  ["a response of 77", { response: ofReads(77) }, "IO EIO", "IO EIO"],
  ["a response of 255", { response: ofReads(255) }, "IO EIO", "IO EIO"],
  ["status CHECK CONDITION without sense data", { status: ofReads(2) }, "IO EIO", "done"],
  ["status RESERVATION CONFLICT", { status: ofReads(0x18) }, "BUSY EBUSY", "done"],
  ["status TASK ABORTED, again and again,", { status: ofReads(0x40) }, "IO EIO", "done"],
  ["status ACA ACTIVE", { status: ofReads(0x30) }, "IO EIO", "done"],
  ["a status of 255", { status: ofReads(255) }, "IO EIO", "done"],
  [
    "a sense_len above sense_size",
    { senseLength: ofReads(97) },
    "DEVICE_MISBEHAVED EIO",
    "DEVICE_MISBEHAVED EIO",
  ],
  [
    "a sense_len of 2^32 - 1",
    { senseLength: ofReads(0xffff_ffff) },
    "DEVICE_MISBEHAVED EIO",
    "DEVICE_MISBEHAVED EIO",
  ],
  [
    "a residual above the data",
    { residual: ofReads(SECTOR + 1) },
    "DEVICE_MISBEHAVED EIO",
    "DEVICE_MISBEHAVED EIO",
  ],
  ["a residual with status GOOD", { residual: ofReads(SECTOR) }, "IO EIO", "done"],
  ["no bytes written", { usedLength: ofReads(0) }, "IO EIO", "IO EIO"],
  ["a response of which half is written", { usedLength: ofReads(11) }, "IO EIO", "IO EIO"],
  [
    "data of which the last byte is not written",
    { usedLength: ofReads(108 + SECTOR - 1) },
    "IO EIO",
    "IO EIO",
  ],
];

describe("a host that answers", () => {
  for (const [what, lie, ofDisk, ofPass] of lies)
    it(`${what} fails that command, and works on`, async () => {
      const { bus, disk, state } = await liar(lie);
      await disk.write(0, pattern(SECTOR, 1));
      state.lying = true;
      const into = new Uint8Array(SECTOR).fill(7);
      expect(await outcome(disk.read(0, into))).toBe(ofDisk);
      expect(into.every((byte) => byte === 7)).toBe(true);
      const cdb = Uint8Array.of(READ_10, 0, 0, 0, 0, 0, 0, 0, 1, 0);
      expect(await outcome(bus.execute({ target: 0, lun: 0, cdb, dataIn: into }))).toBe(ofPass);
      expect(await outcome(disk.write(0, pattern(SECTOR, 2)))).toBe("done");
      state.lying = false;
      await disk.read(0, into);
      expect(into).toEqual(pattern(SECTOR, 2));
      expect(disk.statistics.busy).toBe(0);
    });

  for (const [what, lie] of [
    ["BUSY", { response: ofReads(5) }],
    ["status BUSY", { status: ofReads(8) }],
    ["status TASK SET FULL", { status: ofReads(0x28) }],
  ] as const)
    it(`${what} is asked again for ten seconds, and no longer`, async () => {
      const pass = virtualTime();
      const { disk, state, machine } = await pass(liar(lie));
      state.lying = true;
      const began = machine.tasks.now();
      const late = outcome(disk.read(0, new Uint8Array(SECTOR)));
      expect(await pass(late)).toBe("BUSY EBUSY");
      expect(Math.round((machine.tasks.now() - began) / 1000)).toBe(10);
      const soon = outcome(disk.read(0, new Uint8Array(SECTOR)));
      setTimeout(() => {
        state.lying = false;
      }, 1000);
      expect(await pass(soon)).toBe("done");
    });

  it("with another sense key each time is mapped to one fault each", async () => {
    let sense: readonly [key: number, asc: number, ascq: number] = [0, 0, 0];
    const { bus, disk, state } = await liar({
      status: ofReads(2),
      senseLength: ofReads(18),
      sense: (bytes, opcode) => {
        if (opcode !== READ_10) return;
        const [key, asc, ascq] = sense;
        bytes.set([0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq]);
      },
    });
    state.lying = true;
    for (const [key, asc, ascq, expected] of [
      [0, 0, 0, "done"],
      [1, 0x18, 0, "done"],
      [2, 4, 2, "IO EIO"],
      [3, 0x11, 0, "IO EIO"],
      [4, 0x44, 0, "IO EIO"],
      [5, 0x20, 0, "UNSUPPORTED ENOTSUP"],
      [5, 0x21, 0, "INVALID EINVAL"],
      [5, 0x24, 0, "INVALID EINVAL"],
      [5, 0x25, 0, "CLOSED ENXIO"],
      [6, 0x29, 0, "IO EIO"],
      [7, 0x27, 0, "READ_ONLY EROFS"],
      [7, 0x27, 7, "NO_SPACE ENOSPC"],
      [8, 0, 0, "IO EIO"],
      [11, 0, 6, "IO EIO"],
      [14, 0x1d, 0, "IO EIO"],
      [15, 0, 0, "IO EIO"],
    ] as const) {
      sense = [key, asc, ascq];
      expect([key, asc, await outcome(disk.read(0, new Uint8Array(SECTOR)))]).toEqual([
        key,
        asc,
        expected,
      ]);
    }
    expect(bus.disks).toHaveLength(1);
  });
});

describe("a host that tells of events", () => {
  for (const [what, lies] of [
    ["with garbage", { event: (bytes: Uint8Array) => bytes.set(pattern(16, 99)) }],
    ["of which half is written", { eventLength: () => 7 }],
    ["of targets that there are not", { event: (bytes: Uint8Array) => bytes.fill(0xff, 4, 12) }],
  ] as const)
    it(`${what} is looked at again, or left alone, and works on`, async () => {
      const { bus, port, rules } = await bench({ targets: 32, lies });
      for (let n = 1; n < 20; n++) {
        port.plug({ target: n, backend: new MemoryBackend(SECTOR) });
        await new Promise((resolve) => setImmediate(resolve));
      }
      await bus.rescan();
      expect(bus.disks).toHaveLength(20);
      expect(rules.violations.filter(({ clause }) => !/EVT-[567]|FEAT/.test(clause))).toEqual([]);
    });
});

describe("a host that is asked to manage tasks", () => {
  it("and never answers is waited for five seconds, sixteen times at once at most", async () => {
    const pass = virtualTime();
    const { bus, machine } = await pass(bench({ lies: { control: () => null } }));
    const began = machine.tasks.now();
    const ends = Array.from({ length: 20 }, () =>
      outcome(bus.manage("resetLun", { target: 0, lun: 0 })),
    );
    expect((await pass(Promise.all(ends))).sort()).toEqual([
      ...new Array(4).fill("BUSY EBUSY"),
      ...new Array(16).fill("TIMED_OUT ETIMEDOUT"),
    ]);
    expect(Math.round((machine.tasks.now() - began) / 1000)).toBe(5);
    await pass(bus.detach());
  });

  for (const [response, expected] of [
    [3, "CLOSED ENXIO"],
    [5, "BUSY EBUSY"],
    [6, "CLOSED ENXIO"],
    [7, "IO EIO"],
    [9, "IO EIO"],
    [11, "UNSUPPORTED ENOTSUP"],
    [12, "CLOSED ENXIO"],
    [99, "IO EIO"],
    [255, "IO EIO"],
  ] as const)
    it(`and answers ${response} is refused with ${expected}`, async () => {
      const { bus } = await bench({ lies: { control: () => response } });
      expect(await outcome(bus.manage("resetLun", { target: 0, lun: 0 }))).toBe(expected);
    });
});

describe("a host with garbage", () => {
  it("for configuration is attached, or refused with a clear word, whatever the garbage", async () => {
    const seed = Number(process.env["VIRTIO_TEST_SEED"] ?? Date.now() >>> 0);
    let state = seed;
    const random = (): number => {
      state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
      return state;
    };
    const outcomes = new Set<string>();
    for (let n = 0; n < 15; n++) {
      // No request queue, everything honest, then whatever comes.
      const mask = [1, 0][n] ?? random();
      const garbage = new Map<number, number>();
      const config: ScsiLies["config"] = (offset, width, honest) => {
        if (((mask >>> (offset >>> 2)) & 1) === 0) return honest;
        const value = garbage.get(offset) ?? [0, 1, 3, 0xffff_ffff, random()][n % 5] ?? 0;
        garbage.set(offset, value);
        return width === 4 ? value >>> 0 : value & (2 ** (8 * width) - 1);
      };
      const machine = await embedded({ devices: [scsi({ size: 1 << 20, lies: { config } })] });
      try {
        const [node] = await probe(machine.buses[0].bus);
        if (node === undefined) throw new Error("no device");
        const bus = await attach(node, vtscsi());
        for (const disk of bus.disks)
          expect(await outcome(disk.read(0, new Uint8Array(SECTOR))), `seed ${seed}`).toBe("done");
        outcomes.add("attached");
      } catch (error) {
        const { code } = error as { code?: string };
        expect(
          ["DEVICE_MISBEHAVED", "NOT_FOUND", "INVALID"],
          `seed ${seed}: ${String(error)}`,
        ).toContain(code);
        outcomes.add("refused");
      } finally {
        await machine.close();
      }
    }
    expect([...outcomes].sort()).toEqual(["attached", "refused"]);
  });

  it("for sense data, in either format, never harms", async () => {
    let fill = pattern(96, 1);
    const { disk, state } = await liar({
      status: ofReads(2),
      senseLength: (honest, opcode) => (opcode === READ_10 ? (fill[1] as number) % 97 : honest),
      sense: (bytes, opcode) => {
        if (opcode === READ_10) bytes.set(fill);
      },
    });
    state.lying = true;
    for (let n = 0; n < 200; n++) {
      fill = pattern(96, n);
      if (n % 2 === 0) fill[0] = 0x70 + (n % 4);
      // Not "becoming ready", which is waited for.
      if ((fill[2] as number) % 16 === 2 || (fill[1] as number) % 16 === 2) fill[0] = 0;
      expect(await outcome(disk.read(0, new Uint8Array(SECTOR)))).toMatch(
        /^(done|[A-Z_]+ E[A-Z]+)$/,
      );
    }
    state.lying = false;
    expect(await outcome(disk.read(0, new Uint8Array(SECTOR)))).toBe("done");
  });

  it("for an answer to INQUIRY and the rest has no disks, or ones that can be used", async () => {
    const { bus } = await bench({
      lies: { residual: (honest, opcode) => (opcode === 0x12 ? honest + 80 : honest) },
    });
    await until(() => true);
    for (const disk of bus.disks) expect(disk.sectorSize).toBe(512);
  });
});
