// Faults, and changes of state, while something else is under way.
import { NetFeature } from "@virtio/core/net";
import { describe, expect, it } from "vitest";
import { type Fake, fake, frameOf, running, turns, usual } from "./fake-device.js";

const MEMORY = 8 << 20;

/** A command that the device does not answer: what is begun after it waits. */
function unanswered({ net, device }: Fake): Promise<unknown> {
  device.answer = () => null;
  return net.setPromiscuous(true).catch((error: unknown) => error);
}

/** Resets the device while `work` waits for its turn. */
async function recovered<T>(made: Fake, work: () => Promise<T>): Promise<T> {
  const command = unanswered(made);
  const result = work();
  await turns();
  made.device.answer = () => 0;
  made.device.fail("NEEDS_RESET");
  expect(await command).toMatchObject({ code: "NEEDS_RESET" });
  return result;
}

describe("a reset that the device asks for", () => {
  it("takes back its buffers before the MTU has them made anew", async () => {
    const made = await running();
    await recovered(made, () => made.net.setMtu(9000));
    await turns(20);
    expect([made.net.running, made.net.mtu]).toEqual([true, 9000]);
    made.device.receive(0, frameOf(64));
    expect(made.net.receiveBurst(0, [], 1)).toBe(1);
    await made.net.detach();
    expect(made.device.memory.available).toBe(MEMORY);
  });

  it("takes back its buffers before it is suspended, and waits until it goes on", async () => {
    const made = await running();
    await recovered(made, () => made.net.suspend());
    const { reinits } = made.device;
    await turns(20);
    expect([made.device.reinits, made.net.running]).toEqual([reinits, false]);
    await made.net.resume();
    expect(made.net.running).toBe(true);
    expect(made.device.posted(0)).toHaveLength(16);
  });

  it("happens once, whoever else resets it meanwhile", async () => {
    const made = await running();
    const { reinits } = made.device;
    await recovered(made, () => made.net.down());
    await turns(20);
    expect(made.device.reinits).toBe(reinits + 1);
    expect(made.net.running).toBe(false);
    await made.net.up();
    expect(made.device.posted(0)).toHaveLength(16);
  });

  it("may come again while it is set up anew, but not for ever", async () => {
    const made = await running();
    const faults = async (count: number): Promise<void> => {
      let left = count;
      made.device.answer = () => {
        if (left > 0) made.device.fail("NEEDS_RESET");
        left -= 1;
        return left < 0 ? 0 : null;
      };
      made.device.fail("NEEDS_RESET");
      await turns(100);
    };
    await faults(2);
    expect(made.net.running).toBe(true);
    made.device.receive(0, frameOf(64));
    expect(made.net.receiveBurst(0, [], 1)).toBe(1);
    await faults(3);
    expect(await made.net.closed).toMatchObject({ code: "NEEDS_RESET" });
    await made.net.detach();
    expect(made.device.memory.available).toBe(MEMORY);
  });

  it("while it is set up is what up() rejects with, and up() works again", async () => {
    const made = await fake();
    made.device.answer = () => {
      made.device.fail("NEEDS_RESET");
      made.device.answer = () => 0;
      return null;
    };
    await expect(made.net.up()).rejects.toThrow(expect.objectContaining({ code: "NEEDS_RESET" }));
    await turns(20);
    expect(made.net.running).toBe(false);
    await made.net.up();
    expect(made.device.posted(0)).toHaveLength(16);
  });
});

it("up() brings up an interface that could not be set up anew", async () => {
  const made = await running({ features: [...usual, NetFeature.CSUM, NetFeature.GUEST_CSUM] });
  made.device.answer = () => null;
  const mtu = made.net.setMtu(9000).catch((error: unknown) => error);
  await turns();
  await made.device.tasks.pass(6000);
  expect(await mtu).toMatchObject({ code: "TIMED_OUT" });
  expect(made.net.running).toBe(false);
  made.device.answer = () => 0;
  await made.net.up();
  expect([made.net.running, made.net.mtu]).toEqual([true, 9000]);
});

it("suspend() that the device refuses is undone by resume()", async () => {
  const made = await running();
  const suspend = made.device.suspend.bind(made.device);
  made.device.suspend = () => Promise.reject(new Error("not now"));
  await expect(made.net.suspend()).rejects.toThrow("not now");
  expect(made.net.running).toBe(false);
  made.device.suspend = suspend;
  await made.net.resume();
  expect(made.net.running).toBe(true);
  const { reinits } = made.device;
  await made.net.resume();
  expect(made.device.reinits).toBe(reinits);
});

describe("detach()", () => {
  it("during a reset sends no command any more", async () => {
    const made = await running();
    const { reinits } = made.device;
    const mtu = expect(made.net.setMtu(9000)).rejects.toThrow(
      expect.objectContaining({ code: "CLOSED" }),
    );
    for (let i = 0; i < 20; i++) await Promise.resolve();
    expect(made.device.reinits).toBe(reinits + 1);
    made.device.commands.length = 0;
    await made.net.detach();
    await mtu;
    expect(made.device.commands).toEqual([]);
    expect(made.device.memory.available).toBe(MEMORY);
  });

  it("leaves nobody who writes to memory that was given back, or counts what lies there", async () => {
    const made = await running();
    made.net.onReceive = () => {};
    const frame = made.net.allocate();
    if (frame === null) throw new Error("no frame");
    frame.length = 60;
    made.net.transmitBurst(0, [frame], 1);
    made.device.interrupt(1);
    made.device.interrupt(4);
    await made.net.detach();
    const { bytes } = made.device.memory.allocate(MEMORY);
    await turns();
    expect(bytes.findIndex((byte) => byte !== 0)).toBe(-1);
    bytes.fill(1);
    expect(made.net.statistics).toMatchObject({ opackets: 0, oqdrops: 1 });
  });

  it("tells nobody of the link any more", async () => {
    const made = await running();
    const seen: boolean[] = [];
    made.net.onLinkChange((up) => seen.push(up));
    made.device.configure("status", 0);
    made.device.onConfigChange?.();
    await made.net.detach();
    await turns();
    expect(seen).toEqual([]);
    expect(made.lines).not.toContain("link state changed to DOWN");
  });
});

it("a change of the link is seen when reading the one before failed", async () => {
  const made = await running();
  const { config } = made.device;
  const readAll = config.readAll.bind(config);
  config.readAll = async () => {
    config.readAll = readAll;
    await turns(1);
    throw new Error("not now");
  };
  made.device.onConfigChange?.();
  made.device.configure("status", 0);
  made.device.onConfigChange?.();
  await turns();
  expect(made.lines).toContain("cannot read the link status: Error: not now");
  expect(made.net.link.up).toBe(false);
});

it("an announcement is acknowledged, and the next one is made, though whoever is told fails", async () => {
  const made = await running({
    features: [...usual, NetFeature.GUEST_ANNOUNCE],
    driver: {
      onAnnounce: () => {
        throw new Error("told");
      },
    },
  });
  const { tasks } = made.device;
  const enqueue = tasks.enqueue.bind(tasks);
  const thrown: unknown[] = [];
  tasks.enqueue = (task) =>
    enqueue(() => {
      try {
        task();
      } catch (error) {
        thrown.push(error);
      }
    });
  made.device.commands.length = 0;
  made.device.configure("status", 3);
  for (let i = 0; i < 2; i++) {
    made.device.changed();
    await turns();
  }
  expect(made.device.commands).toMatchObject([{ class: 3 }, { class: 3 }]);
  expect(thrown).toEqual([new Error("told"), new Error("told")]);
});
