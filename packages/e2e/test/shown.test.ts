// The main job as a user sees it: the `virtio` command, embedded and on QEMU, with the same words.
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { blk, qemu } from "@virtio/qemu";
import { beforeAll, describe, expect, it } from "vitest";
import { boot, processesNaming, start, until } from "./command.js";
import { folder, hasQemu, pattern } from "./machines.js";

const MIB = 1 << 20;
const file = folder();
const cwd = dirname(file("x"));
const content = pattern(16 * MIB, 1);

const convert = (...args: string[]): void => void execFileSync("qemu-img", args);
const bytesOf = (name: string): Buffer => readFileSync(file(name));

beforeAll(() => {
  writeFileSync(file("disk.img"), content);
});

/** What two machines say that must be the same: all but who they are and how their interrupts come. */
const comparable = (text: string): string =>
  text
    .replaceAll(/embedded|qemu/g, "MACHINE")
    .replaceAll(/^(avail memory|irq|Total|interrupt).*$/gm, "");

describe("the embedded machine", () => {
  it("boots with the default devices, prints FreeBSD's lines, and does what standard input asks", async () => {
    const { child, ended } = start(cwd, [], "pipe");
    child.stdin?.end("diskinfo vtbd0\nkldstat\n");
    const { status, stdout, stderr } = await ended;
    expect([status, stderr]).toEqual([0, ""]);
    expect(stdout).toMatch(
      /^virtio_pci0: <VirtIO PCI \(modern\) Block adapter> mem 0x\w+-0x\w+,0x\w+-0x\w+ irq \d+ at device 1\.0 on pci0$/m,
    );
    expect(stdout).toMatch(
      /^vtblk0: <VirtIO Block Adapter> on virtio_pci0\nvtblk0: 64MB \(131072 512 byte sectors\)$/m,
    );
    expect(stdout).toMatch(/^vtbd0\t512\t67108864\t131072\t0\t0\t130\t16\t63$/m);
    expect(stdout).toMatch(/^The operating system has halted\.$/m);
  });

  it("ends with the status of the first command that fails, and runs none after it", async () => {
    const { status, stdout, stderr } = await boot(cwd, "--quiet", "-c", "diskinfo vtbd7; help");
    expect(status).toBe(1);
    expect(stderr).toMatch(/^diskinfo: .*vtbd7.*\n$/);
    expect(stdout).not.toMatch(/list the commands/);
  });
});

describe("reading and writing a disk", () => {
  const machines = [
    { name: "embedded, raw", machine: "embedded", image: "disk.img", format: "raw" },
    { name: "QEMU, raw (needs QEMU)", machine: "qemu", image: "disk.img", format: "raw" },
    { name: "QEMU, qcow2 (needs QEMU)", machine: "qemu", image: "disk.qcow2", format: "qcow2" },
  ] as const;
  const said: string[] = [];
  for (const { name, machine, image, format } of machines)
    describe.skipIf(machine === "qemu" && !hasQemu)(name, () => {
      beforeAll(() => {
        if (format === "qcow2")
          convert("convert", "-O", "qcow2", file("disk.img"), file("disk.qcow2"));
      });

      it("copies the whole disk out, and says the same as the other machine", async () => {
        const out = `out-${machine}-${format}.img`;
        const { status, stdout, stderr } = await boot(
          cwd,
          ...["--machine", machine, "--device", `blk,file=${image},format=${format},serial=ABC123`],
          ...["-c", `dmesg; diskinfo -v vtbd0; dd if=/dev/vtbd0 of=${out} bs=1m`],
        );
        expect(status, stderr).toBe(0);
        expect(Buffer.compare(bytesOf(out), content)).toBe(0);
        expect(stdout).toMatch(/^vtblk0: 16MB \(32768 512 byte sectors\)$/m);
        expect(stdout).toMatch(/^\tABC123 +\t# Disk ident\.$/m);
        expect(stderr).toMatch(
          /^16\+0 records in\n16\+0 records out\n16777216 bytes transferred in [\d.]+ secs \(\d+ bytes\/sec\)\n$/,
        );
        said.push(comparable(stdout));
        expect(said.at(-1)).toBe(said[0]);
      });

      it("writes what it is given, and nothing beyond", async () => {
        const data = pattern(1_000_448, 2);
        writeFileSync(file("in.bin"), data);
        writeFileSync(file("target.img"), content);
        const target = format === "raw" ? "target.img" : "target.qcow2";
        if (format === "qcow2") convert("convert", "-O", "qcow2", file("target.img"), file(target));
        const { status, stderr } = await boot(
          cwd,
          ...["--machine", machine, "--device", `blk,file=${target},format=${format}`],
          ...["--quiet", "-c", "dd if=in.bin of=/dev/vtbd0 bs=64k; halt"],
        );
        expect(status, stderr).toBe(0);
        const expected = Buffer.from(content);
        expected.set(data);
        writeFileSync(file("expected.img"), expected);
        if (format === "raw") expect(Buffer.compare(bytesOf(target), expected)).toBe(0);
        else convert("compare", "-f", "raw", "-F", "qcow2", file("expected.img"), file(target));
      });
    });
});

describe("an empty kernel configuration", () => {
  const run = async (loaderConf: string, commands: string): Promise<string> => {
    writeFileSync(file("empty.conf"), "");
    writeFileSync(file("loader.conf"), loaderConf);
    const { status, stdout, stderr } = await boot(
      cwd,
      "--kernel-conf",
      "empty.conf",
      "--loader-conf",
      "loader.conf",
      "-c",
      commands,
    );
    expect(status, stderr).toBe(0);
    return stdout;
  };

  it("with virtio_load alone probes nothing", async () => {
    const stdout = await run('virtio_load="YES"\n', "devinfo; pciconf -l");
    expect(stdout).not.toMatch(/virtio_pci0/);
    expect(stdout).toMatch(/^none0@pci0:0:1:0:/m);
  });

  it("with virtio_pci_load shows an idle device, which kldload virtio_blk attaches", async () => {
    const stdout = await run(
      'virtio_pci_load="YES"\n',
      "devinfo; kldload virtio_blk; devinfo; diskinfo vtbd0",
    );
    const [idle = "", attached = ""] = stdout.split("vtblk0: 64MB (131072 512 byte sectors)");
    expect(idle).toMatch(/^ +virtio_pci0$/m);
    expect(idle.slice(idle.indexOf("nexus0\n"))).not.toMatch(/^ +vtblk0$/m);
    expect(attached).toMatch(/^ +vtblk0$/m);
    expect(attached).toMatch(/^vtbd0\t512\t/m);
  });
});

describe("what is wrong is one clear line, and nothing is left running", () => {
  const wrong: readonly (readonly [
    name: string,
    status: number,
    args: readonly string[],
    says: RegExp,
  ])[] = [
    ["a missing image", 1, ["--device", "blk,file=nothere.img"], /nothere\.img: no such file/],
    ["a device with an unknown key", 2, ["--device", "blk,fil=disk.img"], /unknown key 'fil'/],
    ["an unknown kind of device", 2, ["--device", "floppy"], /no such kind 'floppy'/],
    ["an unknown machine", 2, ["--machine", "bochs"], /bochs/],
    ["an unknown option", 2, ["--fast"], /--fast/],
    ["a loader.conf that is no loader.conf", 1, ["--loader-conf", "bad.conf"], /bad\.conf:2:\d+: /],
    ["a module that does not exist", 1, ["--loader-conf", "none.conf"], /nosuch/],
    ["a tunable out of range", 1, ["--set", "hw.vtblk.no_ident=7"], /hw\.vtblk\.no_ident/],
    ["a missing loader.conf", 1, ["--loader-conf", "nothere.conf"], /nothere\.conf/],
  ];
  beforeAll(() => {
    writeFileSync(file("bad.conf"), 'virtio_load="YES"\nboot_verbose="YES\n');
    writeFileSync(file("none.conf"), 'nosuch_load="YES"\n');
  });
  for (const [name, status, args, says] of wrong)
    it(name, async () => {
      const ended = await boot(cwd, ...args, "-c", "help");
      expect(ended.stderr).toMatch(says);
      expect([ended.status, ended.stderr.trimEnd().split("\n").length], ended.stderr).toEqual([
        status,
        1,
      ]);
    });

  it.skipIf(!hasQemu)("a missing image, on QEMU (needs QEMU)", async () => {
    const ended = await boot(
      cwd,
      "--machine",
      "qemu",
      "--device",
      "blk,file=nothere.img",
      "-c",
      "help",
    );
    expect(ended.stderr).toMatch(/^.*nothere\.img: no such file.*\n$/);
    expect(ended.status).toBe(1);
  });

  it.skipIf(!hasQemu)("an image that another QEMU holds (needs QEMU)", async () => {
    writeFileSync(file("held.img"), new Uint8Array(MIB));
    const holder = await qemu({ devices: [blk({ file: file("held.img") })] });
    const ended = await boot(
      cwd,
      "--machine",
      "qemu",
      "--device",
      "blk,file=held.img",
      "-c",
      "help",
    );
    expect(ended.stderr).toMatch(/^.*held\.img.*(lock|in use|another).*\n$/i);
    expect(ended.status).toBe(1);
    expect(processesNaming("held.img")).toEqual([holder.pid]);
    await holder.close();
  });

  it("a machine without QEMU names the package to install", async () => {
    mkdirSync(file("bin"), { recursive: true });
    const path = process.env["PATH"];
    process.env["PATH"] = file("bin");
    const ended = await boot(cwd, "--machine", "qemu", "-c", "help").finally(() => {
      process.env["PATH"] = path;
    });
    expect(ended.stderr).toMatch(/^.*apt-get install qemu-system-x86.*\n$/);
    expect(ended.status).toBe(1);
  });
});

describe("the end", () => {
  for (const machine of ["embedded", "qemu"] as const)
    describe.skipIf(machine === "qemu" && !hasQemu)(
      machine === "qemu" ? "QEMU (needs QEMU)" : machine,
      () => {
        it("by Ctrl-C: flushes the disk and leaves nothing running", async () => {
          const image = `interrupted-${machine}.img`;
          writeFileSync(file(image), content);
          const { child, ended, printed } = start(
            cwd,
            ["--machine", machine, "--device", `blk,file=${image}`],
            "pipe",
          );
          const data = pattern(4 * MIB, 3);
          writeFileSync(file("in3.bin"), data);
          child.stdin?.write("dd if=in3.bin of=/dev/vtbd0 bs=1m\ndiskinfo vtbd0\n");
          await printed("vtbd0\t512");
          child.kill("SIGINT");
          const { status, stdout, stderr } = await ended;
          expect(stdout).toMatch(/Syncing disks/);
          expect(status, stderr).toBe(130);
          const expected = Buffer.from(content);
          expected.set(data);
          expect(Buffer.compare(bytesOf(image), expected)).toBe(0);
          expect(processesNaming(image)).toEqual([]);
        });
      },
    );

  it.skipIf(!hasQemu)("by SIGKILL: leaves no QEMU (needs QEMU)", async () => {
    writeFileSync(file("killed.img"), content);
    const { child, ended, printed } = start(
      cwd,
      ["--machine", "qemu", "--device", "blk,file=killed.img"],
      "pipe",
    );
    await printed("vtblk0: 16MB");
    expect(processesNaming("killed.img")).toHaveLength(1);
    child.kill("SIGKILL");
    expect((await ended).signal).toBe("SIGKILL");
    await until("QEMU is gone", () => processesNaming("killed.img").length === 0);
    expect(existsSync(file("killed.img"))).toBe(true);
  });
});
