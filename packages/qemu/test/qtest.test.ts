import type { VirtioFault } from "@virtio/core";
import { QtestClient, type QtestOptions } from "@virtio/qemu";
import { describe, expect, it } from "vitest";
import { FakeSocket, settle } from "./support/fake-socket.js";

interface Seen {
  readonly socket: FakeSocket;
  readonly qtest: QtestClient;
  readonly irqs: string[];
  readonly failures: VirtioFault[];
  readonly ends: () => number;
}

function connect(options: Partial<QtestOptions> = {}): Seen {
  const socket = new FakeSocket();
  const irqs: string[] = [];
  const failures: VirtioFault[] = [];
  let ends = 0;
  const qtest = new QtestClient(socket, {
    onInterrupt: (line, level) => irqs.push(`${line} ${level}`),
    onFailure: (fault) => failures.push(fault),
    onEnd: () => ends++,
    ...options,
  });
  return { socket, qtest, irqs, failures, ends: () => ends };
}

describe("a request", () => {
  it("is one line, every number in hex", async () => {
    const { socket, qtest } = connect();
    const calls = [
      qtest.read("memory", 0xe000_4004, 4),
      qtest.read("memory", 0xe000_4012, 2),
      qtest.read("memory", 0xe000_4014, 1),
      qtest.read("io", 0xcfc, 4),
      qtest.read("io", 0xcfe, 2),
      qtest.read("io", 0xcff, 1),
      qtest.write("memory", 0xffff_fffc, 4, 0xffff_ffff),
      qtest.write("memory", 0, 2, 7),
      qtest.write("memory", 1, 1, 0),
      qtest.write("io", 0xcf8, 4, 0x8000_0000),
      qtest.write("io", 0xc000, 2, 65535),
      qtest.write("io", 0xffff, 1, 255),
      qtest.interceptInterrupts("ioapic"),
    ];
    await settle();
    expect(socket.writes.join("").split("\n").slice(0, -1)).toEqual([
      "readl 0xe0004004",
      "readw 0xe0004012",
      "readb 0xe0004014",
      "inl 0xcfc",
      "inw 0xcfe",
      "inb 0xcff",
      "writel 0xfffffffc 0xffffffff",
      "writew 0x0 0x7",
      "writeb 0x1 0x0",
      "outl 0xcf8 0x80000000",
      "outw 0xc000 0xffff",
      "outb 0xffff 0xff",
      "irq_intercept_in ioapic",
    ]);
    socket.say("OK 0x0000000030006e54\nOK 0x00000000000000ff\nOK 0x0000000000000003\n");
    socket.say("OK 0x29c08086\nOK 0x0001\nOK 0x00ff\nOK\nOK\nOK\nOK\nOK\nOK\nOK\n");
    expect(await Promise.all(calls)).toEqual([
      0x3000_6e54,
      0xff,
      3,
      0x29c0_8086,
      1,
      0xff,
      ...Array(7).fill(undefined),
    ]);
  });

  it.each([
    ["an address that is negative", 0xe000_0000 | 0, 4],
    ["an address above 4 GiB", 0x1_0000_0000, 1],
    ["an address that ends above 4 GiB", 0xffff_fffe, 4],
    ["a fraction", 0.5, 1],
    ["NaN", Number.NaN, 1],
    ["an address that is not aligned", 0xe000_0002, 4],
  ] as const)("is refused before it is sent for %s", async (_, address, width) => {
    const { socket, qtest } = connect();
    await expect(qtest.read("memory", address, width)).rejects.toMatchObject({ code: "INVALID" });
    await expect(qtest.write("memory", address, width, 0)).rejects.toMatchObject({
      code: "INVALID",
    });
    expect(() => qtest.post("memory", address, width, 0)).toThrow(/address/);
    await settle();
    expect(socket.writes).toEqual([]);
  });

  it("is refused for a port above 0xffff", async () => {
    await expect(connect().qtest.read("io", 0x1_0000, 1)).rejects.toThrow(
      "io address 65536: not a whole number up to 0xffff",
    );
  });

  it.each([-1, 256, 1.5, Number.NaN, Number.POSITIVE_INFINITY])(
    "is refused for a byte of value %s",
    async (value) => {
      const { socket, qtest } = connect();
      await expect(qtest.write("memory", 0, 1, value)).rejects.toMatchObject({ code: "INVALID" });
      expect(() => qtest.post("memory", 0, 1, value)).toThrow(/does not fit 1 bytes/);
      await settle();
      expect(socket.writes).toEqual([]);
    },
  );

  it("is refused for a path that would be a second request", async () => {
    await expect(connect().qtest.interceptInterrupts("ioapic\noutl 0 0")).rejects.toMatchObject({
      code: "INVALID",
    });
  });
});

describe("one turn", () => {
  it("is one write to the socket, in call order", async () => {
    const { socket, qtest } = connect();
    const first = qtest.read("memory", 0, 4);
    qtest.post("memory", 0x3000, 2, 1);
    const second = Promise.resolve().then(async () => {
      await null;
      return qtest.read("memory", 4, 4);
    });
    await settle();
    expect(socket.writes).toEqual(["readl 0x0\nwritew 0x3000 0x1\nreadl 0x4\n"]);
    socket.say("OK 0x1\nOK\nOK 0x2\n");
    expect(await Promise.all([first, second])).toEqual([1, 2]);
  });

  it("includes what the replies of the turn before set off", async () => {
    const { socket, qtest } = connect();
    const chains = [0, 8].map(async (at) => {
      await qtest.read("memory", at, 4);
      return qtest.read("memory", at + 4, 4);
    });
    await settle();
    socket.say("OK 0x1\nOK 0x2\n");
    await settle();
    expect(socket.writes).toEqual(["readl 0x0\nreadl 0x8\n", "readl 0x4\nreadl 0xc\n"]);
    socket.say("OK 0x3\nOK 0x4\n");
    expect(await Promise.all(chains)).toEqual([3, 4]);
  });

  it("that begins with a doorbell sends it at once, and merges others with the same one that waits", async () => {
    const { socket, qtest } = connect();
    qtest.post("memory", 0x3000, 2, 0);
    const first = "writew 0x3000 0x0\n";
    expect(socket.writes).toEqual([first]);
    for (const value of [0, 0, 1, 0]) qtest.post("memory", 0x3000, 2, value);
    await settle();
    expect(socket.writes).toEqual([first, "writew 0x3000 0x0\nwritew 0x3000 0x1\n"]);
    qtest.post("memory", 0x3000, 2, 0);
    expect(socket.writes[2]).toBe(first);
  });

  it("keeps a doorbell behind a request, and 32-bit ones, which carry data", async () => {
    const { socket, qtest } = connect();
    qtest.post("memory", 0x3000, 2, 0);
    const reset = qtest.write("memory", 0x16, 2, 0);
    qtest.post("memory", 0x3000, 2, 0);
    qtest.post("memory", 0x3000, 4, 5);
    qtest.post("memory", 0x3000, 4, 5);
    await settle();
    expect(socket.writes).toEqual([
      "writew 0x3000 0x0\n",
      "writew 0x16 0x0\nwritew 0x3000 0x0\nwritel 0x3000 0x5\nwritel 0x3000 0x5\n",
    ]);
    socket.say("OK\n".repeat(5));
    await reset;
    expect(qtest.outstanding).toBe(0);
  });
});

describe("replies", () => {
  it("come in order, in any pieces, with interrupt lines between them", async () => {
    const { socket, qtest, irqs } = connect();
    const isr = qtest.read("memory", 0xe000_5000, 1);
    await settle();
    socket.say("IRQ raise 21\nIRQ lo");
    await settle();
    socket.say("wer 21\nOK 0x00000000");
    await settle();
    expect(irqs).toEqual(["21 high", "21 low"]);
    socket.say("00000001\r\n");
    expect(await isr).toBe(1);
  });

  it("that refuse a request reject it with QEMU's words, and the connection goes on", async () => {
    const { socket, qtest, failures } = connect();
    const refused = qtest.interceptInterrupts("nosuch");
    const next = qtest.read("memory", 0, 1);
    await settle();
    socket.say("FAIL Unknown device\nOK 0x7\n");
    await expect(refused).rejects.toMatchObject({
      code: "IO",
      message: "QEMU refused 'irq_intercept_in nosuch': Unknown device",
    });
    expect(await next).toBe(7);
    expect(failures).toEqual([]);
  });

  it("that refuse a posted write close the machine", async () => {
    const { socket, qtest, failures } = connect();
    qtest.post("memory", 0x3000, 2, 0);
    const next = qtest.read("memory", 0, 1);
    await settle();
    socket.say("FAIL no\n");
    await expect(next).rejects.toMatchObject({ code: "CLOSED" });
    expect(failures.map(({ code, message }) => [code, message])).toEqual([
      ["IO", "QEMU refused 'writew 0x3000 0x0': no"],
    ]);
  });

  it.each([
    ["OK\n", "sent a malformed reply"],
    ["OK 12\n", "sent a malformed reply"],
    ["OK 0x12345678901234567\n", "sent a malformed reply"],
    ["hello\n", "sent a malformed reply"],
    ["IRQ raise 1000\n", "sent a malformed reply"],
    ["OK 0x100\n", "sent too large a value"],
    [`${"x".repeat(2000)}`, "sent a line of more than 1024 characters"],
  ])("that are no reply to a byte read, %j, close the machine", async (reply, what) => {
    const { socket, qtest, failures } = connect();
    const read = qtest.read("memory", 0, 1);
    const other = qtest.read("memory", 1, 1);
    await settle();
    socket.say(reply);
    await expect(read).rejects.toMatchObject({ code: "DEVICE_MISBEHAVED" });
    await expect(other).rejects.toMatchObject({ code: "CLOSED" });
    expect(failures).toHaveLength(1);
    expect(failures[0]?.message).toContain(what);
    await expect(qtest.read("memory", 0, 1)).rejects.toMatchObject({ code: "CLOSED" });
  });

  it("that have a value where none is due close the machine", async () => {
    const { socket, qtest } = connect();
    const write = qtest.write("memory", 0, 1, 0);
    await settle();
    socket.say("OK 0x1\n");
    await expect(write).rejects.toMatchObject({ code: "DEVICE_MISBEHAVED" });
  });

  it("that nothing asked for close the machine", async () => {
    const { socket, failures } = connect();
    socket.say("OK\n");
    await settle();
    expect(failures[0]?.message).toBe("QEMU sent a line that nothing asked for: 'OK'");
  });

  it("that do not come close the machine, and say to what", async () => {
    const { qtest, failures } = connect({ timeoutMs: 20 });
    const read = qtest.read("memory", 0, 1);
    const behind = qtest.read("memory", 1, 1);
    await expect(read).rejects.toMatchObject({
      code: "TIMED_OUT",
      message: "QEMU did not answer 'readb 0x0' within 20 ms",
    });
    await expect(behind).rejects.toMatchObject({ code: "CLOSED", cause: failures[0] });
    expect(failures.map(({ code }) => code)).toEqual(["TIMED_OUT"]);
  });

  it("that lie in the socket when this process stood still are not late", async () => {
    const { socket, qtest, failures } = connect({ timeoutMs: 20 });
    const read = qtest.read("memory", 0, 1);
    await settle();
    setImmediate(() => {
      const end = performance.now() + 40;
      while (performance.now() < end);
      // As a socket does: what arrived meanwhile is read after the timers that are due.
      setImmediate(() => socket.say("OK 0x1\n"));
    });
    expect(await read).toBe(1);
    expect(failures).toEqual([]);
  });
});

describe("a QEMU that falls behind", () => {
  it("is sent no more than it can be owed for, and doorbells do not pile up meanwhile", async () => {
    const { socket, qtest } = connect();
    for (let i = 0; i < 4096; i++) qtest.post("memory", 0x3000, 4, i);
    await settle();
    // The first goes at once.
    expect(socket.writes).toHaveLength(2);
    for (let i = 0; i < 1000; i++) {
      qtest.post("memory", 0x3000, 2, 0);
      qtest.post("memory", 0x3004, 2, 1);
    }
    await settle();
    expect(socket.writes).toHaveLength(2);
    expect(qtest.outstanding).toBe(4098);
    socket.say("OK\n");
    await settle();
    expect(socket.writes[2]).toBe("writew 0x3000 0x0\nwritew 0x3004 0x1\n");
    socket.say("OK\n".repeat(4097));
    await settle();
    expect(qtest.outstanding).toBe(0);
  });

  it("is given up when more waits than any driver sends", async () => {
    const { qtest, failures } = connect();
    for (let i = 0; i <= 1 + 65536; i++) qtest.post("memory", 0x3000, 4, i);
    expect(failures.map(({ code }) => code)).toEqual(["BUSY"]);
    expect(qtest.outstanding).toBe(0);
  });
});

describe("the end of the connection", () => {
  it("is told once", async () => {
    const { socket, ends } = connect();
    socket.push(null);
    await settle();
    socket.destroy();
    await settle();
    expect(ends()).toBe(1);
  });

  it("rejects what waits, what was sent, and what comes later; posts do nothing", async () => {
    const { socket, qtest, failures } = connect();
    const sent = qtest.read("memory", 0, 1);
    await settle();
    const waiting = qtest.read("memory", 1, 1);
    const { VirtioFault: Fault } = await import("@virtio/core");
    qtest.close(new Fault("CLOSED", "the machine is closed"));
    qtest.close(new Fault("CLOSED", "again"));
    for (const promise of [sent, waiting, qtest.read("memory", 2, 1)])
      await expect(promise).rejects.toMatchObject({
        code: "CLOSED",
        message: "the machine is closed",
      });
    qtest.post("memory", 0x3000, 2, 0);
    await settle();
    expect(socket.writes).toHaveLength(1);
    expect(failures).toEqual([]);
  });
});
