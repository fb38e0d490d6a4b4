import { VirtioFault } from "@virtio/core";
import { describe, expect, it } from "vitest";
import { deviceRefusal, launchFailure } from "../src/launch-failure.js";

const device = '-device {"driver":"virtio-blk-pci","id":"blk0"}';
const node = '-blockdev {"driver":"qcow2","node-name":"blk0"}';
const labels = new Map([
  [device, "blk,file=a.img"],
  [node, "blk,file=a.img"],
]);
const after = (...stderr: string[]) => launchFailure({ code: 1, signal: null, stderr }, labels);

describe("what QEMU says when it does not start", () => {
  it.each([
    [
      [
        `qemu-system-x86_64: ${device}: Failed to get "write" lock`,
        "Is another process using the image [/tmp/a.img]?",
      ],
      "BUSY",
      "blk,file=a.img: locked by another process, such as another QEMU: end that one first",
    ],
    [
      [`qemu-system-x86_64: ${node}: Image is not in qcow2 format`],
      "INVALID",
      "blk,file=a.img: is not in qcow2 format: use format=raw",
    ],
    [
      [`qemu-system-x86_64: ${device}: Property 'virtio-blk-pci.x' not found`],
      "INVALID",
      "blk,file=a.img: QEMU refuses it: Property 'virtio-blk-pci.x' not found",
    ],
    [
      [
        `qemu-system-x86_64: ${device}: warning: odd`,
        "qemu-system-x86_64: -nosuch: invalid option",
      ],
      "INVALID",
      "QEMU does not start: -nosuch: invalid option",
    ],
    [[], "IO", "QEMU ended while it started, without a word: exit status 1"],
  ] as const)("is one line: %j", (stderr, code, message) => {
    expect(after(...stderr)).toMatchObject({ code, message });
  });

  it("names the signal of a QEMU that said nothing", () => {
    expect(launchFailure({ code: null, signal: "SIGSEGV", stderr: [] }, labels).message).toBe(
      "QEMU ended while it started, without a word: SIGSEGV",
    );
  });
});

describe("what a running QEMU says when it refuses a device", () => {
  it.each([
    [
      "device_add",
      'Failed to get "write" lock (GenericError)',
      "BUSY",
      "blk1: locked by another process, such as another QEMU: end that one first",
    ],
    [
      "blockdev-add",
      "Image is not in qcow2 format (GenericError)",
      "INVALID",
      "blk1: is not in qcow2 format: use format=raw",
    ],
    [
      "device_add",
      "Property 'virtio-blk-pci.x' not found (GenericError)",
      "INVALID",
      "blk1: QEMU refuses it: Property 'virtio-blk-pci.x' not found",
    ],
    [
      "device_del",
      "Bus 'pcie.0' does not support hotplugging (GenericError)",
      "UNSUPPORTED",
      "blk1: sits on a bus without hot-plug",
    ],
    ["device_del", "Device 'blk1' not found (DeviceNotFound)", "NOT_FOUND", "blk1: no such device"],
    [
      "device_del",
      "Device blk1 is already in the process of unplug (GenericError)",
      "BUSY",
      "blk1: is being taken out already",
    ],
  ] as const)("is one line: %s: %s", (command, said, code, message) => {
    const refused = new VirtioFault("IO", `QMP ${command}: ${said}`);
    expect(deviceRefusal("blk1", refused)).toMatchObject({ code, message });
  });

  it("is left alone when it is not about a device", () => {
    for (const error of [new VirtioFault("CLOSED", "the machine is closed"), new Error("other")])
      expect(deviceRefusal("blk1", error)).toBe(error);
  });
});
