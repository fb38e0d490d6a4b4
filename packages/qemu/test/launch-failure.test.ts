import { describe, expect, it } from "vitest";
import { launchFailure } from "../src/launch-failure.js";

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
