// What QEMU says when it does not start or refuses a device, boiled down to one line that says what to do.
import { VirtioFault } from "@virtio/core";
import type { Ended } from "./process.js";

/**
 * The fault behind a QEMU that ended while it started.
 * @param labels `-device {…}` as QEMU repeats it, to how the user calls the device
 */
export function launchFailure(ended: Ended, labels: ReadonlyMap<string, string>): VirtioFault {
  const { code, signal, stderr } = ended;
  const line = stderr.find((text) => !/\bwarning:/.test(text));
  if (line === undefined)
    return new VirtioFault(
      "IO",
      `QEMU ended while it started, without a word: ${signal ?? `exit status ${code}`}`,
    );
  const said = line.replace(/^\S*qemu\S*: /, "");
  for (const [option, label] of labels)
    if (said.startsWith(`${option}: `)) return deviceFailure(label, said.slice(option.length + 2));
  return new VirtioFault("INVALID", `QEMU does not start: ${said}`);
}

/**
 * The fault behind a QMP command about a device that QEMU refused; any other error as it is.
 * @param label how the user calls the device
 */
export function deviceRefusal(label: string, error: unknown): unknown {
  if (!(error instanceof VirtioFault) || error.code !== "IO") return error;
  const said = /^QMP \S+: (.*) \(\w+\)$/s.exec(error.message)?.[1];
  return said === undefined ? error : deviceFailure(label, said);
}

function deviceFailure(label: string, said: string): VirtioFault {
  if (/^Failed to get .*lock/.test(said))
    return new VirtioFault(
      "BUSY",
      `${label}: locked by another process, such as another QEMU: end that one first`,
    );
  if (/not in qcow2 format/.test(said))
    return new VirtioFault("INVALID", `${label}: is not in qcow2 format: use format=raw`);
  if (/^Device '.*' not found$/.test(said))
    return new VirtioFault("NOT_FOUND", `${label}: no such device`);
  if (/does not support hotplugging/.test(said))
    return new VirtioFault("UNSUPPORTED", `${label}: sits on a bus without hot-plug`);
  if (/already in the process of unplug/.test(said))
    return new VirtioFault("BUSY", `${label}: is being taken out already`);
  return new VirtioFault("INVALID", `${label}: QEMU refuses it: ${said}`);
}
