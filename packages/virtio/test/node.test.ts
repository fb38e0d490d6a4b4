import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { boot, FileHost, importModule, parseMachineSpec } from "../src/node/index.js";
import { FakeMachine } from "./fakes.js";

let folder = "";
const place = async (path: string, text: string): Promise<void> => {
  await mkdir(join(folder, path, ".."), { recursive: true });
  await writeFile(join(folder, path), text);
};
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "virtio-"));
});
afterAll(() => rm(folder, { recursive: true }));

describe("files of the host", () => {
  it("are read and written at positions, and made when they are not there", async () => {
    const host = new FileHost(folder);
    const file = await host.create("sub.bin");
    await file.write(2, Uint8Array.of(1, 2, 3));
    await file.truncate(8);
    await file.close();
    expect([...(await readFile(join(folder, "sub.bin")))]).toEqual([0, 0, 1, 2, 3, 0, 0, 0]);
    const again = await host.open("sub.bin");
    expect(again.size).toBe(8);
    const into = new Uint8Array(5);
    expect(await again.read(3, into)).toBe(5);
    expect([...into]).toEqual([2, 3, 0, 0, 0]);
    expect(await again.read(6, into)).toBe(2);
    await again.close();
  });

  it("leave what a file holds when it is opened for writing", async () => {
    await place("old", "precious");
    const file = await new FileHost(folder).create("old");
    await file.close();
    expect(await readFile(join(folder, "old"), "utf8")).toBe("precious");
  });

  it("are refused by name", async () => {
    const host = new FileHost(folder);
    await expect(host.open("gone")).rejects.toThrow("gone: No such file or directory");
    await expect(host.open(".")).rejects.toThrow(".: Is a directory");
    await expect(host.create("no/such/folder")).rejects.toThrow("No such file or directory");
    await expect(host.open("/dev/null")).rejects.toThrow("/dev/null: is not a regular file");
  });

  it("are listed for completion", async () => {
    await place("dir/a.img", "");
    const host = new FileHost(folder);
    expect(await host.list("dir/")).toEqual(["dir/a.img"]);
    expect(await host.list("di")).toContain("dir/");
    expect(await host.list("nosuch/")).toEqual([]);
  });
});

describe("modules of the user", () => {
  const module = (name: string): string =>
    `{ file: "${name}", name: "${name}", version: 1, depends: [], drivers: [], busDrivers: [] }`;

  it("come from a package in the user's folder, from a file, or from a package for import alone", async () => {
    await place("node_modules/foo/package.json", '{ "type": "module", "main": "./main.js" }');
    await place("node_modules/foo/main.js", `export const kernelModule = ${module("foo")};`);
    await place(
      "node_modules/@x/bar/package.json",
      '{ "type": "module", "exports": { ".": { "import": "./bar.js" } } }',
    );
    await place("node_modules/@x/bar/bar.js", `export const kernelModule = ${module("bar")};`);
    await place("mine.mjs", `export const kernelModule = ${module("mine")};`);
    for (const [name, file] of [
      ["foo", "foo"],
      ["@x/bar", "bar"],
      ["./mine.mjs", "mine"],
    ] as const)
      expect((await importModule(name, folder)).kernelModule.file).toBe(file);
  });

  it("are refused when they are not there, do not load or are no modules", async () => {
    await place("broken.mjs", 'throw new Error("broken");');
    await place("empty.mjs", "export {};");
    await place("shape.mjs", 'export const kernelModule = { file: "x" };');
    await expect(importModule("gone", folder)).rejects.toThrow(
      `there is no package 'gone' in ${folder}`,
    );
    await expect(importModule("./broken.mjs", folder)).rejects.toThrow(
      "the package './broken.mjs' does not load: broken",
    );
    for (const name of ["./empty.mjs", "./shape.mjs"])
      await expect(importModule(name, folder)).rejects.toThrow(
        `the package '${name}' exports no kernelModule`,
      );
  });
});

describe("boot()", () => {
  it("boots what it is told, without a shell", async () => {
    await place("loader.conf", "hw.vtblk.no_ident=1\n");
    const kernel = await boot({
      machine: "embedded,ncpus=2",
      devices: ["blk,size=1m", { kind: "blk", size: 2 << 20 }],
      loaderConf: "loader.conf",
      cwd: folder,
    });
    expect(kernel.machine.cpus).toBe(2);
    expect(kernel.disks.map(({ name, mediaSize }) => [name, mediaSize])).toEqual([
      ["vtbd0", 1 << 20],
      ["vtbd1", 2 << 20],
    ]);
    await kernel.shutdown();
    expect(kernel.disks).toEqual([]);
  });

  it("puts what the machine says among the kernel's messages", async () => {
    let say: (line: string) => void = () => {};
    const kernel = await boot({
      open: async (_, { log }) => {
        log("fake: starting");
        say = log;
        return new FakeMachine();
      },
    });
    say("fake: irq21: stuck interrupt");
    expect(kernel.messages.lines.slice(-2)).toEqual([
      "fake: starting",
      "fake: irq21: stuck interrupt",
    ]);
    await kernel.shutdown();
  });

  it("reads machine specifications", () => {
    expect(parseMachineSpec("qemu,type=pc,ncpus=4,interrupts=msix")).toEqual({
      kind: "qemu",
      type: "pc",
      cpus: 4,
      interrupts: "msix",
    });
    expect(parseMachineSpec("embedded")).toEqual({ kind: "embedded" });
  });
});
