// A rule broken on purpose: a guest that breaks exactly this rule, and the report that names it.
import { expect, it } from "vitest";
import type { BareGuest, GuestOptions } from "./bare-guest.js";

/** Clause, what the guest does, how it does it, to which device. */
export type Crime<G extends BareGuest> = readonly [
  clause: string,
  what: string,
  commit: (guest: G) => Promise<unknown>,
  device?: GuestOptions,
];

/** One test for each: the checker fires. */
export function eachFires<G extends BareGuest>(
  start: (device?: GuestOptions) => Promise<G>,
  crimes: readonly Crime<G>[],
): void {
  for (const [clause, what, commit, device] of crimes)
    it(`reports a guest that ${what} [${clause} fires]`, async () => {
      const guest = await start(device);
      try {
        await commit(guest);
        expect(guest.clauses()).toContain(clause);
        expect(guest.rules.violations[0]?.device).toBe("blk0");
      } finally {
        await guest.machine.close();
      }
    });
}
