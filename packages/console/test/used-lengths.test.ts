// Used lengths beyond what a buffer holds (virtio 1.4 §2.7.8.2): a fault on the modern interface; the legacy one has its own rules.
import { type DmaRegion, SysctlTree } from "@virtio/core";
import { attach } from "@virtio/pci-transport";
import { splitLayout } from "@virtio/ring";
import { describe, expect, it } from "vitest";
import { vtcon } from "../src/index.js";
import {
  type BenchOptions,
  bytesOf,
  machineOf,
  outcome,
  pattern,
  turns,
  until,
  write,
} from "./attached.js";

const ALIGN = 4096;

/** A console of one port on split rings, whose used entries the test can change before the driver looks. */
async function tampered(options: BenchOptions) {
  const made = await machineOf({ queueSize: 64, ...options });
  const { memory } = made.machine;
  const regions: DmaRegion[] = [];
  const allocate = memory.allocate.bind(memory);
  memory.allocate = (length, align) => {
    const region = allocate(length, align);
    if (align === ALIGN) regions.push(region);
    return region;
  };
  const sysctl = new SysctlTree();
  const device = await attach(made.node, vtcon(), { sysctl: sysctl.node("vtcon", "") });
  const [port] = device.ports;
  const [end] = made.host.ports;
  if (port === undefined || end === undefined) throw new Error("no port");
  await port.open();
  await turns();
  /** Every used entry of a queue says that so many bytes were written. */
  const say = (queue: number, length: number): void => {
    const { bytes } = regions[queue] as DmaRegion;
    const used = new DataView(bytes.buffer, bytes.byteOffset + splitLayout(64, ALIGN).used);
    for (let i = 0; i < 64; i++) used.setUint32(8 + 8 * i, length, true);
  };
  return { ...made, device, port, end, say };
}

describe("vtcon, told of more bytes than a buffer holds,", () => {
  for (const queue of [0, 1])
    it(`ends its ports with DEVICE_MISBEHAVED on the modern interface, queue ${queue}`, async () => {
      const { device, port, end, say } = await tampered({});
      if (queue === 0) {
        end.write(bytesOf("abc"));
        await until(() => end.pending === 0);
        say(0, 1025);
        expect(port.receive(new Uint8Array(2000))).toBe(0);
      } else {
        expect(port.transmit(bytesOf("abc"))).toBe(3);
        await until(() => end.readableLength === 3);
        say(1, 1);
        expect(port.pending).toBe(3);
      }
      expect(await device.closed).toMatchObject({ code: "DEVICE_MISBEHAVED" });
      expect(await outcome(port.open())).toBe("DEVICE_MISBEHAVED EIO");
      await device.detach();
    });

  it("reads no more than the buffer on the legacy interface", async () => {
    const { device, port, end, say } = await tampered({ legacy: "on" });
    end.write(bytesOf("abc"));
    await until(() => end.pending === 0);
    say(0, 0xffff_ffff);
    const into = new Uint8Array(5000);
    expect(port.receive(into)).toBe(1024);
    expect([...into.subarray(0, 4)]).toEqual([...bytesOf("abc"), 0]);
    end.write(bytesOf("def"));
    await until(() => end.pending === 0);
    expect(port.receive(into)).toBe(3);
    await device.detach();
    expect(await device.closed).toBe(null);
  });

  for (const length of [1, 77, 0xffff_ffff])
    it(`takes what was transmitted for taken on the legacy interface, used.len ${length} [CONSOLE-LEGACY-2]`, async () => {
      const { device, port, end, say } = await tampered({ legacy: "on" });
      for (let round = 0; round < 3; round++) {
        expect(port.transmit(pattern(3000))).toBe(3000);
        await until(() => end.readableLength === 3000);
        say(1, length);
        expect(port.pending).toBe(0);
        end.read(new Uint8Array(3000));
      }
      await write(port.writable, bytesOf("more"));
      await device.detach();
      expect(await device.closed).toBe(null);
    });
});
