// Network devices with backend stream: QEMU connects after it has made them, and drops what their drivers transmit before.
import { setTimeout as sleep } from "node:timers/promises";
import { VirtioFault } from "@virtio/core";
import type { DevicePlan } from "./plan.js";
import type { QmpClient } from "./qmp.js";

/** Milliseconds that a connection may take: QEMU makes it in a thread of its own. */
const CONNECT_TIMEOUT_MS = 2_000;
/** Milliseconds between looks: there is no event for a connection that was made before anybody could listen. */
const LOOK_MS = 2;

/**
 * Waits until the socket of the device is connected, where it has one that QEMU connects.
 * @throws VirtioFault IO when nobody listens there, TIMED_OUT, CLOSED
 */
export async function streamConnected(
  qmp: QmpClient,
  { label, stream }: DevicePlan,
): Promise<void> {
  if (stream === null) return;
  const end = performance.now() + CONNECT_TIMEOUT_MS;
  for (;;) {
    const all = await qmp.execute("human-monitor-command", { "command-line": "info network" });
    const line = String(all)
      .split("\n")
      .find((text) => text.includes(`${stream}:`));
    if (line?.includes("unix:")) return;
    if (line?.includes("error")) throw new VirtioFault("IO", `${label}: nobody listens there`);
    if (performance.now() > end)
      throw new VirtioFault("TIMED_OUT", `${label}: not connected within ${CONNECT_TIMEOUT_MS} ms`);
    await sleep(LOOK_MS);
  }
}
