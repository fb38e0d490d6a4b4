// The block device's model against the device clauses of the legacy interface (virtio 1.4 §5.2.5.3, §5.2.6.3), driven by hand.
import { BLOCK_BARRIER, BlockRequestType, BlockStatus } from "@virtio/core/block";
import { afterEach, describe, expect, it } from "vitest";
import { MemoryBackend } from "../src/index.js";
import type { BareGuest, GuestOptions } from "./bare-guest.js";
import { GatedBackend } from "./gated-backend.js";
import { LegacyGuest } from "./legacy-guest.js";
import { recorded } from "./recorded.js";

const { IN, OUT, FLUSH } = BlockRequestType;
const { OK, UNSUPP } = BlockStatus;
const WRITEBACK_AT = 32;
const FLUSH_OUT = 5;

let guest: BareGuest;
afterEach(() => guest.machine.close());

describe("a legacy block device", () => {
  it("takes FLUSH_OUT for FLUSH", async () => {
    const { asked, backend } = recorded();
    guest = await LegacyGuest.start({ backend });
    await guest.run();
    expect((await guest.request(FLUSH_OUT, 0, 0, 0)).status).toBe(OK);
    expect(asked).toEqual(["flush 0+0"]);
  });

  it("lets writeback be set before the driver accepts anything, and keeps it then", async () => {
    const { asked, backend } = recorded();
    guest = await LegacyGuest.start({ backend });
    const g = guest;
    // Behind 20 bytes of registers: no MSI-X.
    const at = 20 + WRITEBACK_AT;
    await g.acknowledge();
    expect(await g.legacy.read(at, 1)).toBe(1);
    await g.legacy.write(at, 1, 0);
    await g.negotiate(([low = 0]) => [low & ((1 << 27) | (1 << 11) | (1 << 9))]);
    expect(await g.legacy.read(at, 1)).toBe(0);
    await g.placeQueue();
    await g.enableQueue();
    await g.status(7);
    await g.request(OUT, 0, 512, 0);
    expect(asked).toEqual(["write 0+512", "flush 0+0"]);
  });

  it("does not change the cache mode for what the driver accepts", async () => {
    const { asked, backend } = recorded();
    guest = await LegacyGuest.start({ backend });
    await guest.run(([low = 0]) => [low & ((1 << 27) | (1 << 11))]);
    expect(await guest.legacy.read(20 + WRITEBACK_AT, 1)).toBe(1);
    await guest.request(OUT, 0, 512, 0);
    expect(asked).toEqual(["write 0+512"]);
  });

  /** Three reads, the second with the flag of a barrier. */
  const threeReads = async (options: GuestOptions, features: number) => {
    const backend = new GatedBackend(1 << 20);
    const g = await LegacyGuest.start({ backend, ...options });
    guest = g;
    await g.run(([low = 0]) => [low & features]);
    for (const [i, type] of [IN, BLOCK_BARRIER, IN].entries()) {
      new DataView(g.machine.memory.buffer, g.data.offset + i * 1024).setUint32(0, type, true);
      g.descriptor(i * 2, i * 1024, 16, 1, i * 2 + 1);
      g.descriptor(i * 2 + 1, i * 1024 + 16, 513, 2);
      g.available[2 + i] = i * 2;
    }
    g.available[1] = 3;
    await g.ringDoorbell();
    await g.settle();
    return { g, backend };
  };

  it("does a request with BARRIER after all before it, and before all after it", async () => {
    const { g, backend } = await threeReads({ features: { BARRIER: true } }, (1 << 27) | 1);
    for (let done = 0; done < 3; done++) {
      await g.until(() => g.usedIndex === done && backend.waiting > 0);
      expect(backend.waiting).toBe(1);
      backend.letGo();
    }
    await g.until(() => g.usedIndex === 3);
    expect([0, 1, 2].map((i) => g.used[1 + 2 * i])).toEqual([0, 2, 4]);
    // The status bytes, the last of what each could write.
    expect([0, 1, 2].map((i) => g.data.bytes[i * 1024 + 16 + 512])).toEqual([OK, OK, OK]);
  });

  it("goes on at once after a BARRIER that had nothing to wait for", async () => {
    const memory = new MemoryBackend(1 << 20);
    const { g } = await threeReads({ backend: memory, features: { BARRIER: true } }, (1 << 27) | 1);
    await g.until(() => g.usedIndex === 3);
  });

  it("forgets a barrier at a reset", async () => {
    const { g, backend } = await threeReads({ features: { BARRIER: true } }, (1 << 27) | 1);
    await g.status(0);
    backend.letGo();
    await g.untilStatus(0);
    await g.reset();
    await g.run(([low = 0]) => [low & ((1 << 27) | 1)]);
    expect((await g.request(FLUSH, 0, 0, 0)).status).toBe(OK);
  });

  it("does not know the flag without BARRIER", async () => {
    const { g, backend } = await threeReads({}, 1 << 27);
    expect(backend.waiting).toBe(2);
    backend.letGo();
    await g.until(() => g.usedIndex === 3);
    expect(g.data.bytes[1024 + 16 + 512]).toBe(UNSUPP);
  });
});
