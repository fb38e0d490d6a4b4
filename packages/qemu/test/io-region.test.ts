import { VirtioFault } from "@virtio/core";
import { QtestClient } from "@virtio/qemu";
import { describe, expect, it } from "vitest";
import { QtestRegion } from "../src/io-region.js";
import { FakeSocket, settle } from "./support/fake-socket.js";

function region(space: "memory" | "io", fault: VirtioFault | null = null) {
  const socket = new FakeSocket();
  const qtest = new QtestClient(socket, {
    onInterrupt: () => {},
    onFailure: () => {},
    onEnd: () => {},
  });
  const at = { name: "BAR 0 of pci0:0:1:0", space, base: 0xc000, length: 0x40, gone: () => fault };
  return { socket, region: new QtestRegion(qtest, at) };
}

describe("a region of registers", () => {
  it("adds its base, in its space", async () => {
    for (const [space, expected] of [
      ["memory", "readl 0xc000\nwriteb 0xc03f 0x1\nwritew 0xc010 0x2\n"],
      ["io", "inl 0xc000\noutb 0xc03f 0x1\noutw 0xc010 0x2\n"],
    ] as const) {
      const { socket, region: registers } = region(space);
      const read = registers.read(0, 4);
      const write = registers.write(0x3f, 1, 1);
      registers.post(0x10, 2, 2);
      await settle();
      expect(socket.writes).toEqual([expected]);
      socket.say("OK 0x5\nOK\nOK\n");
      expect(await read).toBe(5);
      await write;
    }
  });

  it.each([
    [0x40, 1],
    [0x3e, 4],
    [-4, 4],
    [1, 2],
    [0.5, 1],
    [Number.NaN, 4],
  ] as const)("refuses %s with width %s: outside, or not aligned", async (offset, width) => {
    const { socket, region: registers } = region("memory");
    await expect(registers.read(offset, width)).rejects.toMatchObject({ code: "INVALID" });
    await expect(registers.write(offset, width, 0)).rejects.toMatchObject({ code: "INVALID" });
    if (width !== 1) expect(() => registers.post(offset, width, 0)).toThrow(/BAR 0 of pci0:0:1:0/);
    await settle();
    expect(socket.writes).toEqual([]);
  });

  it("is silent when its function was taken out: another may be at its address", async () => {
    const { socket, region: registers } = region("memory", new VirtioFault("CLOSED", "taken out"));
    await expect(registers.read(0, 4)).rejects.toThrow("taken out");
    await expect(registers.write(0, 4, 1)).rejects.toThrow("taken out");
    registers.post(0, 2, 1);
    await settle();
    expect(socket.writes).toEqual([]);
  });
});
