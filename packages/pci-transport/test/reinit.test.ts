// A reset of the device with the same queues, and what may change by it.
import { featureSet, featureSetFromWords, ReservedFeature } from "@virtio/core";
import { BlockFeature } from "@virtio/core/block";
import { CommonConfig } from "@virtio/core/pci";
import { embedded, RuleBook } from "@virtio/hypervisor";
import { afterEach, describe, expect, it } from "vitest";
import { attach, type PciNode, probe } from "../src/index.js";
import { type NullDevice, nullDriver } from "./null-driver.js";
import { tampered } from "./tampered-bus.js";

const rules = new RuleBook();
afterEach(() => {
  expect(rules.violations.splice(0)).toEqual([]);
});

/** A driver on a device; `accepted` reads the low word of what it last accepted. */
async function attached(
  spec = "blk,size=1m",
  offered: (word: number) => number | undefined = () => undefined,
): Promise<{ null0: NullDevice; accepted: () => number; close: () => Promise<void> }> {
  const machine = await embedded({ devices: [spec], rules });
  let word = 0;
  let accepted = 0;
  const bus = tampered(machine, {
    read: (offset, value) => (offset === CommonConfig.DEVICE_FEATURE ? offered(value) : undefined),
    write: (offset, value) => {
      if (offset === CommonConfig.DRIVER_FEATURE_SELECT) word = value;
      if (offset === CommonConfig.DRIVER_FEATURE && word === 0) accepted = value;
      return true;
    },
  });
  const [node] = await probe(bus);
  const null0 = await attach(node as PciNode, nullDriver());
  return { null0, accepted: () => accepted, close: () => machine.close() };
}

type Features = ReservedFeature | BlockFeature;
const FLUSH = 1 << BlockFeature.FLUSH;

describe("reinit", () => {
  for (const spec of ["blk,size=1m", "blk,size=1m,packed=on"])
    it(`changes features of the device's type, and keeps them when none are named (${spec})`, async () => {
      const { null0, accepted, close } = await attached(spec);
      const before = featureSetFromWords<Features>(null0.features.words());
      const works = async (): Promise<void> => {
        null0.queue.enableInterrupt();
        expect(await null0.flush()).toBe(0);
      };
      expect(accepted() & FLUSH).toBe(0);
      await works();
      await null0.device.reinit(before.with(BlockFeature.FLUSH));
      expect(accepted() & FLUSH).toBe(FLUSH);
      await works();
      await null0.device.reinit();
      expect(accepted() & FLUSH).toBe(FLUSH);
      await works();
      await null0.device.reinit(before);
      expect(accepted() & FLUSH).toBe(0);
      await works();
      await close();
    });

  for (const spec of ["blk,size=1m", "blk,size=1m,packed=on", "blk,size=1m,legacy=on"])
    it(`refuses features without those that its queues were made for, and leaves the device as it is (${spec})`, async () => {
      const { null0, close } = await attached(spec);
      const before = featureSetFromWords<Features>(null0.features.words());
      for (const wanted of [
        featureSet<Features>().with(BlockFeature.FLUSH),
        before.without(ReservedFeature.EVENT_IDX),
        before.with(ReservedFeature.NOTIFICATION_DATA),
      ])
        await expect(null0.device.reinit(wanted)).rejects.toMatchObject({
          code: "INVALID",
          message: expect.stringContaining("features of queues and negotiation"),
        });
      expect(await null0.flush()).toBe(0);
      await close();
    });

  it("says that the device misbehaves when it offers less than before", async () => {
    let honest = true;
    const { null0, close } = await attached("blk,size=1m", (word) =>
      honest ? undefined : word & ~(1 << ReservedFeature.EVENT_IDX),
    );
    honest = false;
    await expect(null0.device.reinit()).rejects.toMatchObject({
      code: "DEVICE_MISBEHAVED",
      message: expect.stringContaining("other features are offered after a reset"),
    });
    await close();
  });
});
