import { EventEmitter } from "node:events";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough } from "node:stream";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Io, main } from "../src/cli/virtio.js";
import { FakeMachine } from "./fakes.js";

let folder = "";
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "virtio-"));
  await writeFile(join(folder, "EMPTY"), "");
  await writeFile(join(folder, "bad.conf"), 'a="1"\nvirtio_load="YES\n');
  await writeFile(join(folder, "nosuch.conf"), '# third-party\nfoo_load="YES"\n');
  await writeFile(join(folder, "package.conf"), 'foo_load="YES"\nfoo_name="not-installed"\n');
  await writeFile(join(folder, "mine.conf"), 'foo_load="YES"\nfoo_name="./mine.mjs"\n');
  await writeFile(
    join(folder, "mine.mjs"),
    'export const kernelModule = { file: "foo", name: "foo", version: 1, depends: ["virtio"], drivers: [], busDrivers: [] };',
  );
  await writeFile(
    join(folder, "disk.img"),
    Uint8Array.from({ length: 65536 }, (_, i) => (i * 7) >> 3),
  );
});
afterAll(() => rm(folder, { recursive: true }));

/** Runs the command in this process. */
const virtio = async (
  args: readonly string[],
  { input = "", open }: { input?: string; open?: Io["open"] } = {},
): Promise<{ status: number; out: string; err: string }> => {
  const stdin = new PassThrough();
  stdin.end(input);
  const [stdout, stderr] = [new PassThrough(), new PassThrough()];
  const status = await main(args, {
    stdin,
    stdout,
    stderr,
    cwd: folder,
    signals: new EventEmitter(),
    exit: () => {},
    ...(open === undefined ? {} : { open }),
  });
  const text = (stream: PassThrough): string => (stream.read() ?? "").toString();
  return { status, out: text(stdout), err: text(stderr) };
};

describe("the command line", () => {
  it("explains itself", async () => {
    const { status, out } = await virtio(["--help"]);
    expect(status).toBe(0);
    for (const option of [
      "--machine",
      "--device",
      "--kernel-conf",
      "--loader-conf",
      "--set",
      "-c",
      "--quiet",
    ])
      expect(out).toContain(option);
    expect((await virtio(["boot", "--version"])).out).toMatch(/^virtio \d+\.\d+\.\d+\S*\n$/);
  });

  it.each<[string, string[]]>([
    ["what to do? Try 'virtio --help'", []],
    ["no such command 'frob': try 'virtio --help'", ["frob"]],
    ["unexpected argument 'now': try 'virtio --help'", ["boot", "now"]],
    ["Unknown option '--frob': try 'virtio --help'", ["boot", "--frob"]],
    ["Option '--device <value>' argument missing: try 'virtio --help'", ["boot", "--device"]],
    ["device 'blk,fil=x': unknown key 'fil' (blk takes: file,", ["boot", "--device", "blk,fil=x"]],
    ["device 'floppy': no such kind 'floppy'", ["boot", "--device", "floppy"]],
    ["machine 'vax': no such machine 'vax' (there is: embedded, qemu)", ["boot", "--machine=vax"]],
    [
      "machine 'embedded,type=pc': unknown key 'type' (the machine embedded takes: ncpus)",
      ["boot", "--machine", "embedded,type=pc"],
    ],
    [
      "machine 'qemu,type=vax': type=vax: 'vax' is not one of q35, pc",
      ["boot", "--machine", "qemu,type=vax"],
    ],
    [
      "machine 'qemu,ncpus=0': ncpus=0: '0' is not a whole number from 1 to 1024",
      ["boot", "--machine", "qemu,ncpus=0"],
    ],
    ["machine 'qemu,pc': 'pc' is not of the form key=value", ["boot", "--machine", "qemu,pc"]],
    ["--set 'a': not of the form NAME=VALUE", ["boot", "--set", "a"]],
  ])("refuses wrong usage in one line, with status 2: %s", async (message, args) => {
    const { status, out, err } = await virtio(args);
    expect({ status, out }).toEqual({ status: 2, out: "" });
    expect(err.startsWith(`virtio: ${message}`)).toBe(true);
    expect(err.match(/\n/g)).toHaveLength(1);
  });

  it.each<[string, string[]]>([
    ["bad.conf:2:17: expected '\"', found the end of the line", ["--loader-conf", "bad.conf"]],
    ["nosuch.conf:2: can't load foo: No such file or directory", ["--loader-conf", "nosuch.conf"]],
    [
      "package.conf:1: can't load foo: there is no package 'not-installed'",
      ["--loader-conf", "package.conf"],
    ],
    ["missing.conf: No such file or directory", ["--loader-conf", "missing.conf"]],
    ["missing: No such file or directory", ["--kernel-conf", "missing"]],
    ["--set: hw.vtblk.nosuch: vtblk has no such tunable", ["--set", "hw.vtblk.nosuch=1"]],
    [
      "--set: hw.vtblk.0.no_ident: '2' is not a whole number from 0 to 1",
      ["--set", "hw.vtblk.0.no_ident=2"],
    ],
  ])(
    "says in one line what else is wrong, with status 1, and starts no machine: %s",
    async (message, args) => {
      let opened = 0;
      const open = async (): Promise<FakeMachine> => {
        opened++;
        return new FakeMachine();
      };
      const { status, out, err } = await virtio(["boot", ...args], { open });
      expect({ status, out, opened }).toEqual({ status: 1, out: "", opened: 0 });
      expect(err.startsWith(`virtio: ${message}`)).toBe(true);
      expect(err.match(/\n/g)).toHaveLength(1);
    },
  );

  it("names an image that is not there", async () => {
    const { status, err } = await virtio(["boot", "--device", "blk,file=gone.img"]);
    expect(status).toBe(1);
    expect(err).toMatch(/^virtio: .*gone\.img: .*\n$/);
  });
});

describe("virtio boot", () => {
  it("prints the boot messages, runs commands and halts", async () => {
    const { status, out, err } = await virtio([
      "boot",
      "--device",
      "blk,file=disk.img,serial=ABC123",
      "-c",
      "diskinfo -s vtbd0; dd if=/dev/vtbd0 of=out.img bs=4k",
    ]);
    expect(status).toBe(0);
    expect(out).toMatch(
      /^virtio .*\nreal memory[\s\S]*\nvtblk0: <VirtIO Block Adapter> on virtio_pci0\n[\s\S]*\nABC123\nSyncing disks\.\.\. done\nThe operating system has halted\.\n$/,
    );
    expect(err).toMatch(/^16\+0 records in\n16\+0 records out\n65536 bytes transferred in /);
    const [from, to] = await Promise.all(
      ["disk.img", "out.img"].map((name) => readFile(join(folder, name))),
    );
    expect(from?.equals(to ?? Buffer.alloc(0))).toBe(true);
  });

  it("prints only what commands say when it is quiet", async () => {
    expect(await virtio(["boot", "-q", "-c", "sysctl -n hw.ncpu", "-c", "halt"])).toEqual({
      status: 0,
      out: "8\n",
      err: "",
    });
  });

  it("exits with the status of the first command that fails, and runs none after it", async () => {
    expect(await virtio(["boot", "-q", "-c", "kenv nosuch; dmesg", "-c", "dmesg"])).toEqual({
      status: 1,
      out: "",
      err: "kenv: unable to get nosuch\n",
    });
  });

  it("takes commands from standard input, goes on after a failure, and remembers it", async () => {
    const input = "# comment\nfrob\nsysctl -n hw.ncpu # here too\n\nhalt\ndmesg\n";
    expect(await virtio(["boot", "-q", "--machine", "embedded,ncpus=3"], { input })).toEqual({
      status: 127,
      out: "3\n",
      err: "frob: not found (help lists the commands)\n",
    });
  });

  it("attaches step by step on an empty kernel", async () => {
    const args = ["boot", "-q", "--kernel-conf", "EMPTY", "--set", "virtio_load=YES"];
    expect((await virtio([...args, "-c", "devinfo"])).out).toBe("nexus0\n  pcib0\n    pci0\n");
    const { out } = await virtio([
      ...args,
      "--set",
      "virtio_pci_load=YES",
      "-c",
      "devinfo; kldload virtio_blk; kldload if_vtnet; devinfo; kldstat",
    ]);
    const tree = (...leaves: readonly string[]): string =>
      [
        "nexus0\n  pcib0\n    pci0\n",
        // One of each kind.
        ...[0, 1, 2, 3, 4].map(
          (unit) =>
            `      virtio_pci${unit}\n${leaves[unit] === undefined ? "" : `        ${leaves[unit]}\n`}`,
        ),
      ].join("");
    expect(out).toBe(
      `${tree()}${tree("vtblk0", "vtnet0")}` +
        "Id Refs Name\n 1    5 kernel\n 2    4 virtio.ko\n 3    1 virtio_pci.ko\n 4    1 virtio_blk.ko\n 5    1 if_vtnet.ko\n",
    );
  });

  it("loads a module of the user's", async () => {
    const { status, out } = await virtio([
      "boot",
      "-q",
      "--loader-conf",
      "mine.conf",
      "-c",
      "kldstat -n foo",
    ]);
    expect({ status, out }).toEqual({ status: 0, out: "Id Refs Name\n 2    1 foo.ko\n" });
  });

  it("fails when the disks cannot be flushed, and says so once", async () => {
    const machine = new FakeMachine();
    machine.close = async () => {
      throw new Error("the machine burns");
    };
    const { status, err } = await virtio(["boot", "-q", "-c", "halt"], {
      open: async () => machine,
    });
    expect({ status, err }).toEqual({ status: 1, err: "halt: Error: the machine burns\n" });
  });
});

describe("signals", () => {
  /** A session that waits for input, or for what it was told to run. */
  const session = async (
    args: readonly string[] = [],
  ): Promise<{
    signals: EventEmitter;
    forced: number[];
    machine: FakeMachine;
    status: Promise<number>;
    stdout: PassThrough;
  }> => {
    const signals = new EventEmitter();
    const machine = new FakeMachine();
    const forced: number[] = [];
    const stdout = new PassThrough();
    const status = main(["boot", ...args], {
      stdin: new PassThrough(),
      stdout,
      stderr: new PassThrough(),
      cwd: folder,
      signals,
      exit: (code) => forced.push(code),
      open: async () => machine,
    });
    await expect.poll(() => String(stdout.read() ?? "")).toContain("pci0: <PCI bus> on pcib0");
    return { signals, forced, machine, status, stdout };
  };

  it.each([
    ["SIGINT", 130],
    ["SIGTERM", 143],
    ["SIGHUP", 129],
  ])("halts in order at %s and exits with %d", async (signal, expected) => {
    const { signals, machine, status, forced } = await session();
    signals.emit(signal);
    expect(await status).toBe(expected);
    expect(machine.closed).toBe(1);
    expect(forced).toEqual([]);
    expect(signals.listenerCount(signal)).toBe(0);
  });

  it("ends the process at the second one", async () => {
    const { signals, machine, status, forced } = await session();
    let close = (): void => {};
    const closing = new Promise<void>((reached) => {
      machine.close = () =>
        new Promise((resolve) => {
          close = resolve;
          reached();
        });
    });
    signals.emit("SIGINT");
    signals.emit("SIGINT");
    expect(forced).toEqual([130]);
    await closing;
    close();
    expect(await status).toBe(130);
  });

  it("halts in order when nobody reads what it prints", async () => {
    const { machine, status, stdout } = await session();
    stdout.emit("error", new Error("EPIPE"));
    expect(await status).toBe(141);
    expect(machine.closed).toBe(1);
  });

  it("ends a machine that was starting when the signal came", async () => {
    const signals = new EventEmitter();
    const machine = new FakeMachine();
    const status = await main(["boot"], {
      stdin: new PassThrough(),
      stdout: new PassThrough(),
      stderr: new PassThrough(),
      cwd: folder,
      signals,
      exit: () => {},
      open: async () => {
        signals.emit("SIGINT");
        return machine;
      },
    });
    expect(status).toBe(130);
    expect(machine.closed).toBe(1);
  });
});
