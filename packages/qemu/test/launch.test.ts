import { chmodSync, existsSync, readdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { blk, qemu } from "@virtio/qemu";
import { describe, expect, it } from "vitest";
import { findProgram, hasQemu, launch, temporaryFolder } from "./support/machine.js";

/** Descriptors of this process: none may be left by a launch that failed. */
const descriptors = (): number => readdirSync("/proc/self/fd").length;

describe("a launch", () => {
  it("without QEMU is one line that names what to install", async () => {
    await expect(qemu({ binary: "qemu-system-none" })).rejects.toMatchObject({
      code: "NOT_FOUND",
      message:
        "QEMU is not installed: no 'qemu-system-none' on the PATH (Debian, Ubuntu: apt-get install qemu-system-x86; Fedora: dnf install qemu-system-x86; Homebrew: brew install qemu)",
    });
    await expect(qemu({ binary: "/nowhere/qemu" })).rejects.toThrow("no '/nowhere/qemu' there");
  });

  it("with a missing image is one line, before QEMU is looked for", async () => {
    await expect(
      qemu({ devices: ["blk,file=nosuch.img"], binary: "qemu-system-none" }),
    ).rejects.toMatchObject({ code: "NOT_FOUND", message: "blk,file=nosuch.img: no such file" });
  });

  it.each([
    [{ type: "microvm" as "pc" }, "qemu: machine type 'microvm' is not q35 or pc"],
    [{ interrupts: "msi" as "msix" }, "qemu: interrupts 'msi' is not intx or msix"],
    [{ cpus: 0 }, "qemu: cpus 0 is not a whole number from 1"],
    [{ memory: 1_000_000 }, "qemu: memory of 1000000 bytes is not a multiple of 1 MiB"],
    [{ memory: 4096 << 20 }, "is not a multiple of 1 MiB from 4 MiB to 2 GiB"],
    [{ memory: 2 ** 32 }, "is not a multiple of 1 MiB from 4 MiB to 2 GiB"],
    [{ rootPorts: -1 }, "qemu: rootPorts -1 is not a whole number from 0"],
    [{ type: "pc" as const, rootPorts: 1 }, "qemu: a pc has no root ports: devices go onto bus 0"],
    [{ devices: ["blk,colour=red"] }, "unknown key 'colour'"],
    [{ devices: [blk({ queueSize: 3 })] }, "blk0: queueSize 3 is not a power of two"],
  ])("with options that make no sense is refused: %j", async (options, message) => {
    await expect(qemu(options)).rejects.toMatchObject({
      code: "INVALID",
      message: expect.stringContaining(message),
    });
  });

  it("with more devices and root ports than slots is refused", async () => {
    const devices = Array.from({ length: 28 }, () => "blk");
    await expect(qemu({ devices, rootPorts: 3 })).rejects.toMatchObject({
      code: "NO_SPACE",
      message: "qemu: 28 devices and 3 root ports: a q35 has 30 slots",
    });
  });

  it("that was aborted before it began rejects with the signal's reason", async () => {
    const reason = new Error("changed my mind");
    await expect(qemu({ signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
  });
});

describe.skipIf(!hasQemu)("a launch (needs QEMU)", () => {
  it("of an image that another QEMU has is one line", async () => {
    const folder = temporaryFolder();
    writeFileSync(join(folder, "disk.img"), Buffer.alloc(1 << 20));
    const devices = ["blk,file=disk.img"];
    const first = await launch({ cwd: folder, devices });
    const before = descriptors();
    await expect(qemu({ cwd: folder, devices })).rejects.toMatchObject({
      code: "BUSY",
      message:
        "blk,file=disk.img: locked by another process, such as another QEMU: end that one first",
    });
    expect(descriptors()).toBe(before);
    await first.close();
    await launch({ cwd: folder, devices });
  });

  it("of a raw image as qcow2 is one line", async () => {
    const folder = temporaryFolder();
    writeFileSync(join(folder, "a,b.img"), Buffer.alloc(1 << 20));
    await expect(
      qemu({ cwd: folder, devices: [blk({ file: "a,b.img", format: "qcow2" })] }),
    ).rejects.toThrow("blk,file=a,b.img: is not in qcow2 format: use format=raw");
    await launch({ cwd: folder, devices: [blk({ file: "a,b.img" })] });
  });

  it("with an argument that QEMU does not know says so in QEMU's words", async () => {
    await expect(qemu({ args: ["-nosuch"] })).rejects.toMatchObject({
      code: "INVALID",
      message: "QEMU does not start: -nosuch: invalid option",
    });
  });

  it("of a program that is no QEMU is one line", async () => {
    await expect(qemu({ binary: findProgram("true") ?? "true" })).rejects.toThrow(
      "QEMU ended while it started, without a word: exit status 0",
    );
  });

  it("that is aborted leaves no process behind", async () => {
    const folder = temporaryFolder();
    const binary = join(folder, "qemu");
    const started = join(folder, "started");
    writeFileSync(binary, `#!/bin/sh\ntouch '${started}'\nexec sleep 60\n`);
    chmodSync(binary, 0o755);
    const controller = new AbortController();
    const reason = new Error("changed my mind");
    const launching = qemu({ binary, signal: controller.signal });
    const poll = setInterval(() => {
      if (existsSync(started)) controller.abort(reason);
    }, 5);
    const before = performance.now();
    await expect(launching).rejects.toBe(reason);
    clearInterval(poll);
    expect(performance.now() - before).toBeLessThan(5_000);
  });

  it("works from a folder of another name, with a program that the PATH does not hold", async () => {
    const folder = temporaryFolder();
    symlinkSync(findProgram("qemu-system-x86_64") ?? "", join(folder, "my qemu"));
    const machine = await launch({ binary: join(folder, "my qemu") });
    expect(machine.version).toMatch(/^\d/);
  });

  it("can be done several times at once", async () => {
    const machines = await Promise.all([launch(), launch(), launch()]);
    expect(new Set(machines.map(({ pid }) => pid)).size).toBe(3);
  });
});
