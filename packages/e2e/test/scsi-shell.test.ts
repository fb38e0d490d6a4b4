// SCSI disks as a user of the shell sees them: embedded and on QEMU, with the same words.
import { readFileSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import type { Machine } from "@virtio/core";
import { embedded, scsi as embeddedScsi } from "@virtio/hypervisor";
import { FileBackend } from "@virtio/hypervisor/node";
import { qemu, scsi } from "@virtio/qemu";
import { Kernel, load, Shell } from "virtio";
import { FileHost } from "virtio/node";
import { describe, expect, it, onTestFinished } from "vitest";
import { folder, hasQemu, pattern } from "./machines.js";

const MIB = 1 << 20;
const file = folder();
const cwd = dirname(file("x"));

/** A machine with one SCSI disk, target 1 LUN 0, in a file. */
async function machineOf(kind: "embedded" | "qemu", image: string): Promise<Machine> {
  const at = { serial: "SN1", target: 1, lun: 0 };
  return kind === "qemu"
    ? qemu({ devices: [scsi({ file: image, ...at })] })
    : embedded({ devices: [embeddedScsi({ backend: await FileBackend.open(image), ...at })] });
}

/** Boots, runs one line after the other, halts. */
async function session(machine: Machine, lines: readonly string[]) {
  const kernel = new Kernel({ machine, image: await load({}) });
  await kernel.boot();
  onTestFinished(() => kernel.shutdown());
  const said: string[] = [];
  const shell = new Shell({
    kernel,
    host: new FileHost(cwd),
    out: (text) => said.push(text),
    err: (text) => said.push(text),
  });
  const results: [line: string, status: number, said: string][] = [];
  for (const line of lines) {
    said.length = 0;
    results.push([line, await shell.run(line), said.join("")]);
  }
  await shell.close();
  return { kernel, results };
}

/** What two machines say that must be the same: all but whose disk it is, and what only one has to say. */
const comparable = (text: string): string =>
  text
    .replaceAll(/<(QEMU QEMU HARDDISK 2\.5\+|VIRTIO SCSI DISK 1\.4)>\s*/g, "<DISK> ")
    .replaceAll(/SPC-\d/g, "SPC-N")
    .replaceAll(/^(\S*\t)?.*copied.*$|bytes transferred in.*$|#.*TRIM.*$/gm, "");

const lines: readonly (readonly [line: string, status: number])[] = [
  ["camcontrol devlist", 0],
  ["camcontrol devlist -v", 0],
  ["camcontrol devlist -b", 0],
  ["camcontrol inquiry da0", 0],
  ["camcontrol inquiry 0:1:0 -S", 0],
  ["camcontrol inquiry -n da -u 0 -R", 0],
  ["camcontrol tur da0", 0],
  ["camcontrol readcap da0", 0],
  ["camcontrol readcap da0 -h", 0],
  ["camcontrol readcap da0 -s -N", 0],
  ["camcontrol reportluns da0 -c", 0],
  ["camcontrol cmd da0 -c '25 0 0 0 0 0 0 0 0 0' -i 8 'i4 i4'", 0],
  ["camcontrol cmd da0 -c '0 0 0 0 0 0'", 0],
  ["camcontrol cmd da0 -v -c '28 0 ff ff ff ff 0 0 1 0' -i 512 -", 1],
  ["camcontrol rescan all", 0],
  ["camcontrol rescan 0:1:0", 0],
  ["camcontrol reset 0:1:0", 0],
  ["camcontrol reset 0", 0],
  ["camcontrol tur da7", 1],
  ["camcontrol nonsense", 1],
  ["diskinfo da0", 0],
  ["diskinfo -s da0", 0],
  ["geom disk list da0", 0],
  ["dd if=/dev/da0 of=out.bin bs=64k count=16", 0],
  ["dd if=new.bin of=/dev/da0 bs=64k seek=2", 0],
  ["kldstat -v", 0],
  ["sysctl dev.vtscsi.0.scsi_cmd_timeouts dev.vtscsi.0.%desc", 0],
];

describe("camcontrol, diskinfo, geom and dd", () => {
  const all: string[] = [];
  for (const kind of ["embedded", "qemu"] as const)
    it.skipIf(kind === "qemu" && !hasQemu)(
      `work on da0, on ${kind}${kind === "qemu" ? " (needs QEMU)" : ""}, in the same words`,
      async () => {
        const content = pattern(4 * MIB, 1);
        const image = file(`${kind}.img`);
        writeFileSync(image, content);
        writeFileSync(file("new.bin"), pattern(MIB, 2));
        const machine = await machineOf(kind, image);
        const { kernel, results } = await session(
          machine,
          lines.map(([line]) => line),
        );
        for (const [i, [line, status, said]] of results.entries())
          expect([line, status, said]).toEqual([line, lines[i]?.[1], said]);
        const said = (line: string): string => results.find(([each]) => each === line)?.[2] ?? "";
        expect(comparable(said("camcontrol devlist -v"))).toBe(
          "scbus0 on vtscsi0 bus 0:\n<DISK> at scbus0 target 1 lun 0 (da0)\n",
        );
        expect(said("camcontrol readcap da0")).toBe("Last Block: 8191, Block Length: 512 bytes\n");
        expect(said("camcontrol cmd da0 -c '25 0 0 0 0 0 0 0 0 0' -i 8 'i4 i4'")).toBe(
          "8191 512\n",
        );
        expect(said("camcontrol inquiry 0:1:0 -S")).toBe("SN1\n");
        expect(said("camcontrol reset 0:1:0")).toBe("Reset of 0:1:0 was successful\n");
        expect(said("camcontrol rescan all")).toBe("Re-scan of bus 0 was successful\n");
        expect(said("diskinfo da0")).toMatch(/^da0\t512\t4194304\t8192\t/);
        expect(Buffer.compare(readFileSync(file("out.bin")), content.subarray(0, MIB))).toBe(0);
        const boot = kernel.messages.lines
          .filter((text) => /^(vtscsi|da)0/.test(text))
          .map(comparable);
        expect(boot.slice(0, 7)).toEqual([
          "vtscsi0: <VirtIO SCSI Adapter> on virtio_pci0",
          "da0 at vtscsi0 bus 0 scbus0 target 1 lun 0",
          "da0: <DISK> Fixed Direct Access SPC-N SCSI device",
          "da0: Serial Number SN1",
          "da0: 300.000MB/s transfers",
          "da0: Command Queueing enabled",
          "da0: 4MB (8192 512 byte sectors)",
        ]);
        await kernel.shutdown();
        content.set(pattern(MIB, 2), 2 * 65536);
        expect(Buffer.compare(readFileSync(image), content)).toBe(0);
        all.push(
          comparable(
            results
              .filter(([line]) => /^camcontrol/.test(line))
              .map((r) => r.join("\n"))
              .join("\n"),
          ),
        );
        expect(all.at(-1)).toBe(all[0]);
      },
    );

  it("tell disks of two adapters apart", async () => {
    const machine = await embedded({
      devices: [embeddedScsi({ size: MIB }), embeddedScsi({ size: 2 * MIB, target: 4 })],
    });
    const { kernel, results } = await session(machine, [
      "camcontrol devlist -b",
      "camcontrol readcap da0; camcontrol readcap da1",
    ]);
    expect(kernel.disks.map(({ name }) => name)).toEqual(["da0", "da1"]);
    expect(results.map(([, status, said]) => [status, said])).toEqual([
      [0, "scbus0 on vtscsi0 bus 0\nscbus1 on vtscsi1 bus 0\n"],
      [
        0,
        expect.stringMatching(
          /^Last Block: (2047|4095), Block Length: 512 bytes\nLast Block: (4095|2047), Block Length: 512 bytes\n$/,
        ),
      ],
    ]);
  });
});
