// cu(1): on a console of the embedded machine, with input from a pipe, from a terminal, and without.
import { EventEmitter } from "node:events";
import { PassThrough } from "node:stream";
import { ConsoleHost, consoleDevice, embedded } from "@virtio/hypervisor";
import { describe, expect, it } from "vitest";
import { type Io, main } from "../src/cli/virtio.js";
import { Escapes } from "../src/shell/commands/cu-escapes.js";

interface Terminal extends PassThrough {
  isTTY?: boolean;
  isRaw?: boolean;
  setRawMode?(on: boolean): void;
}

/** `virtio -c LINE` in this process. */
function virtio(
  lines: readonly string[],
  stdin: Terminal,
  { open, args = [], tty = false }: { open?: Io["open"]; args?: string[]; tty?: boolean } = {},
) {
  const stdout: Terminal = Object.assign(new PassThrough(), { isTTY: tty });
  const stderr = new PassThrough();
  let out = "";
  stdout.setEncoding("utf8").on("data", (text: string) => {
    out += text;
  });
  let err = "";
  stderr.setEncoding("utf8").on("data", (text: string) => {
    err += text;
  });
  const signals = new EventEmitter();
  const status = main(["boot", ...args, "-q", ...lines.flatMap((line) => ["-c", line])], {
    ...{ stdin, stdout, stderr, cwd: ".", signals, exit: () => {} },
    ...(open === undefined ? {} : { open }),
  });
  return { status, signals, out: () => out, err: () => err };
}

const loop = ["--device", "console,ports=2"];

function piped(text: string): Terminal {
  const stdin: Terminal = new PassThrough();
  stdin.end(text);
  return stdin;
}

function terminal(): Terminal & { modes: boolean[] } {
  const modes: boolean[] = [];
  const stdin: Terminal = new PassThrough();
  return Object.assign(stdin, {
    modes,
    isTTY: true,
    isRaw: false,
    setRawMode: (on: boolean) => {
      modes.push(on);
    },
  });
}

describe("cu", () => {
  it("sends its input, prints what comes back, and ends by itself when that is over", async () => {
    const run = virtio(["cu -l ttyV0.0", "cu -l /dev/ttyV0.1"], piped("hello, port\n"), {
      args: loop,
    });
    expect(await run.status).toBe(0);
    expect(run.out()).toBe("hello, port\n");
    expect(run.err()).toBe("Connected\n\n[EOT]\nConnected\n\n[EOT]\n");
  });

  it("ends at ~. at the beginning of a line, and nowhere else", async () => {
    const run = virtio(["cu -l ttyV0.0"], piped("one\n~~two~.\n~.three"), {
      args: loop,
    });
    expect(await run.status).toBe(0);
    expect(run.out()).toBe("one\n~two~.\n");
  });

  it("is a terminal's two ends: keys go as they are typed, until ~.", async () => {
    const stdin = terminal();
    const run = virtio(["cu -l ttyV0.0", "cu -l ttyV0.1"], stdin, { args: loop });
    await expect.poll(run.err).toBe("Connected\n");
    for (const key of "ls\r") stdin.write(key);
    await expect.poll(run.out).toBe("ls\r");
    stdin.write("\x03~");
    stdin.write("?\r");
    await expect.poll(run.out).toBe("ls\r\x03~?\r");
    stdin.write("~");
    stdin.write(".");
    await expect.poll(run.err).toBe("Connected\n\n[EOT]\nConnected\n");
    expect(stdin.modes).toEqual([true, false, true]);
    stdin.write("~.");
    expect(await run.status).toBe(0);
    expect(stdin.modes).toEqual([true, false, true, false]);
  });

  it("lets a person leave a port that takes nothing, and rings the bell for keys that it cannot keep", async () => {
    const host = new ConsoleHost([{}, { open: false }]);
    const stdin = terminal();
    const run = virtio(["cu -l ttyV0.1"], stdin, {
      open: () => embedded({ devices: [consoleDevice({ host })] }),
    });
    await expect.poll(run.err).toBe("Connected\n");
    stdin.write("x".repeat(4000));
    stdin.write("y".repeat(100));
    await expect.poll(run.out).toBe("\x07");
    stdin.write("\r~.");
    expect(await run.status).toBe(0);
  });

  it("ends when its port is taken away, and says so", async () => {
    const host = new ConsoleHost([{}, { name: "org.test.1" }]);
    const run = virtio(["cu -l /dev/vtcon/org.test.1"], terminal(), {
      open: () => embedded({ devices: [consoleDevice({ host })] }),
    });
    await expect.poll(() => host.port(1).guestOpen).toBe(true);
    host.port(1).write(new TextEncoder().encode("bye"));
    await expect.poll(run.out).toBe("bye");
    host.unplug(1);
    expect(await run.status).toBe(1);
    expect(run.err()).toContain("cu: vtcon0: ttyV0.1 was taken away");
  });

  it("is ended by a signal", async () => {
    const run = virtio(["cu -l ttyV0.0"], terminal(), { args: loop });
    await expect.poll(run.err).toBe("Connected\n");
    run.signals.emit("SIGTERM");
    expect(await run.status).toBe(143);
  });

  it.each([
    ["cu", "usage: cu -l line"],
    ["cu ttyV0.0", "usage: cu -l line"],
    ["cu -l ttyV0.0 more", "unexpected argument 'more'"],
    ["cu -s 9600 -l ttyV0.0", "illegal option -- s"],
    ["cu -l ttyV0.9", "cu: ttyV0.9: No such file or directory (ports: ttyV0.0, ttyV0.1)"],
  ])("refuses %s", async (line, message) => {
    const run = virtio([line], piped(""), { args: loop });
    expect(await run.status).toBe(1);
    expect(run.err()).toContain(message);
  });

  it("says that there is no port where there is no console", async () => {
    const run = virtio(["cu -l ttyV0.0"], piped(""), { args: ["--device", "blk,size=1m"] });
    expect(await run.status).toBe(1);
    expect(run.err()).toBe("cu: ttyV0.0: No such file or directory (ports: none)\n");
  });

  it("takes the keys from a prompt, and gives them back", async () => {
    const stdin = terminal();
    const run = virtio([], stdin, { args: loop, tty: true });
    await expect.poll(run.out).toContain("# ");
    stdin.write("cu -l ttyV0.0\r");
    await expect.poll(run.err).toBe("Connected\n");
    const before = run.out().length;
    for (const key of "dmesg\r") stdin.write(key);
    await expect.poll(() => run.out().slice(before)).toContain("dmesg\r");
    stdin.write("~.");
    await expect.poll(run.err).toBe("Connected\n\n[EOT]\n");
    // What was typed to the port is no command.
    expect(run.out()).not.toContain("VirtIO");
    stdin.write("help cu\r");
    await expect.poll(run.out).toContain("usage: cu -l line");
    stdin.write("halt\r");
    expect(await run.status).toBe(0);
  });
});

describe("the tilde of cu", () => {
  const sent = (...pieces: string[]): [string, boolean] => {
    const escapes = new Escapes();
    const bytes = pieces.flatMap((piece) => [...escapes.take(new TextEncoder().encode(piece))]);
    return [String.fromCharCode(...bytes, ...escapes.rest()), escapes.over];
  };

  it.each([
    [["a~.b"], "a~.b", false],
    [["a\n~.b"], "a\n", true],
    [["~", "."], "", true],
    [["~\x04"], "", true],
    [["~~.x"], "~.x", false],
    [["\r~", "~", "~.\n~."], "\r~~.\n", true],
    [["~", "?"], "~?", false],
    [["~\n~."], "~\n", true],
    [["x\n~"], "x\n~", false],
  ])("%j is sent as %j", (pieces, bytes, over) => {
    expect(sent(...pieces)).toEqual([bytes, over]);
  });
});
