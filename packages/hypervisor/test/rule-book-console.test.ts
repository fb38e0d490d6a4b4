// Each rule of the console's language is seen to fire: a guest that breaks exactly this rule, and the report that names it.
import { ConsoleEvent } from "@virtio/core/console";
import { describe, expect, it } from "vitest";
import { ConsoleGuest, type ConsoleGuestOptions, controlMessage } from "./console-guest.js";

type Crime = readonly [
  clause: string,
  what: string,
  commit: (guest: ConsoleGuest) => Promise<unknown>,
  device?: ConsoleGuestOptions,
];

const two: ConsoleGuestOptions = { ports: [{ console: true }, { console: true }] };
const old: ConsoleGuestOptions = { ...two, legacy: "on", features: { ANY_LAYOUT: false } };

/** Up to both ports being nominated consoles. */
async function nominated(g: ConsoleGuest): Promise<void> {
  await g.hear(12);
  await g.say(0, ConsoleEvent.DEVICE_READY);
  for (const id of [0, 1]) await g.say(id, ConsoleEvent.PORT_READY);
}

const crimes: readonly Crime[] = [
  [
    "CONSOLE-OP-1",
    "puts a readable buffer into a receive queue",
    async (g) => {
      g.host.port(0).write(new Uint8Array(3));
      await g.offer(0, [new Uint8Array(8), 8]);
    },
  ],
  [
    "CONSOLE-OP-1",
    "does so with control messages",
    async (g) => {
      await g.offer(2, [new Uint8Array(8), 64]);
      await g.say(0, ConsoleEvent.DEVICE_READY);
    },
    two,
  ],
  [
    "CONSOLE-OP-2",
    "puts a writable buffer into a transmit queue",
    (g) => g.offer(1, [new Uint8Array(8), 8]),
  ],
  [
    "CONSOLE-OP-2",
    "does so with control messages",
    (g) => g.offer(3, [controlMessage(0, ConsoleEvent.DEVICE_READY, 1), 8]),
    two,
  ],
  ["CONSOLE-MP-1", "says nothing of being ready", (g) => g.say(0, ConsoleEvent.PORT_READY), two],
  [
    "CONSOLE-MP-3",
    "opens the second console and not the first",
    async (g) => {
      await nominated(g);
      await g.say(1, ConsoleEvent.PORT_OPEN);
      expect(g.clauses()).toEqual([]);
      await g.reset();
    },
    two,
  ],
  [
    "CONSOLE-MP-4",
    "answers CONSOLE_PORT with a closing",
    async (g) => {
      await nominated(g);
      await g.say(0, ConsoleEvent.PORT_OPEN, 0);
    },
    two,
  ],
  [
    "CONSOLE-LEGACY-1",
    "writes a control message in the other byte order",
    (g) => g.offer(3, [controlMessage(0, ConsoleEvent.PORT_OPEN, 1, false)]),
    old,
  ],
  [
    "CONSOLE-FRAME-LEGACY-1",
    "has a control message in two descriptors",
    (g) => {
      const message = controlMessage(0, ConsoleEvent.DEVICE_READY, 1);
      return g.offer(3, [message.subarray(0, 4), message.subarray(4)]);
    },
    old,
  ],
];

describe("the rule book of the console", () => {
  for (const [clause, what, commit, device] of crimes)
    it(`reports a guest that ${what} [${clause} fires]`, async () => {
      const guest = await ConsoleGuest.start(device);
      try {
        await commit(guest);
        expect(guest.clauses()).toContain(clause);
        expect(guest.rules.violations.at(-1)?.device).toBe("console0");
      } finally {
        await guest.machine.close();
      }
    });

  for (const device of [two, old])
    it(`keeps them of a guest that does all of this as it should, legacy=${device.legacy ?? "off"}`, async () => {
      const g = await ConsoleGuest.start(device);
      await nominated(g);
      for (const id of [0, 1]) await g.say(id, ConsoleEvent.PORT_OPEN);
      g.host.port(0).write(new Uint8Array(3));
      await g.offer(0, [8]);
      await g.offer(1, [new Uint8Array(8)]);
      g.host.unplug(1);
      await g.settle();
      await g.reset();
      expect(g.clauses()).toEqual([]);
      const clauses = crimes
        .map(([id]) => id)
        .filter((id) => device === old || !id.includes("LEGACY"));
      for (const clause of clauses) expect([clause, g.rules.kept(clause)]).not.toEqual([clause, 0]);
      await g.machine.close();
    });

  it("says nothing of a driver that left before it read that a port is a console, or whose port was taken away", async () => {
    const g = await ConsoleGuest.start(two);
    await nominated(g);
    g.host.unplug(0);
    await g.say(1, ConsoleEvent.PORT_OPEN);
    await g.reset();
    await g.run();
    await nominated(g);
    await g.reset();
    expect(g.clauses()).toEqual([]);
    await g.machine.close();
  });
});
