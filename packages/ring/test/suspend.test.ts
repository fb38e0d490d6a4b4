// A queue of a device that is suspended (virtio 1.4 §3.4.1).
import { Errno, VirtioFault } from "@virtio/core";
import { describe, expect, it } from "vitest";
import { type Format, rig, serve } from "./support/rig.js";

const formats: readonly Format[] = ["split", "packed"];

describe.each(formats)("a frozen %s queue", (format) => {
  for (const indirect of [false, true])
    it(`told what was enqueued, takes nothing more, and goes on where it was (indirect ${indirect})`, () => {
      const { driver, device, data, doorbells, buffer } = rig({ format, indirect });
      const segments = new Uint32Array([data.address, 16, data.address + 64, 16]);
      expect(driver.enqueue(1, segments, 0, 1, 1)).toBe(0);
      driver.freeze();
      expect(doorbells).toHaveLength(1);
      // Neither in the ring nor at the doorbell does anything change.
      const memory = new Uint8Array(buffer).slice();
      expect(driver.enqueue(2, segments, 0, 1, 1)).toBe(-Errno.EBUSY);
      expect(driver.enqueueReadable(2, data.address, 16)).toBe(-Errno.EBUSY);
      expect(driver.enqueueWritable(2, data.address, 16)).toBe(-Errno.EBUSY);
      driver.publish();
      driver.notify();
      expect(doorbells).toHaveLength(1);
      expect(memory).toEqual(new Uint8Array(buffer));
      expect(serve(device)).toBe(1);
      expect(driver.dequeue()).toBe(1);
      driver.thaw();
      expect(driver.enqueue(2, segments, 0, 1, 1)).toBe(0);
      driver.notify();
      expect(serve(device)).toBe(1);
      expect(driver.dequeue()).toBe(2);
    });

  it("is still broken when it is thawed, and fresh when it is restarted", () => {
    const { driver, data } = rig({ format });
    driver.freeze();
    driver.fail(new VirtioFault("CLOSED", "gone"));
    driver.thaw();
    expect(driver.enqueueReadable(0, data.address, 16)).toBe(-Errno.EIO);
    driver.restart();
    expect(driver.enqueueReadable(0, data.address, 16)).toBe(0);
  });
});
