import { describe, expect, it } from "vitest";
import { parseKernelConf } from "../src/index.js";

describe("a kernel configuration", () => {
  it("compiles nothing in when it is empty, and is called as its file", () => {
    const conf = parseKernelConf("\n# nothing\n", "conf/EMPTY");
    expect(conf).toMatchObject({ ident: "EMPTY", generic: false, options: [] });
    expect(conf.devices.size).toBe(0);
  });

  it("names devices, options and itself", () => {
    const conf = parseKernelConf(
      'ident MYKERNEL\noptions "A=1", B\ndevice virtio, virtio_pci # bus\n\tdevice  virtio_blk\n',
      "K",
    );
    expect(conf.ident).toBe("MYKERNEL");
    expect(conf.options).toEqual(["A=1", "B"]);
    expect([...conf.devices.keys()]).toEqual(["virtio", "virtio_pci", "virtio_blk"]);
    expect(conf.devices.get("virtio_pci")).toEqual({ file: "K", line: 3, column: 16 });
  });

  it("may start from GENERIC and take things out again", () => {
    const conf = parseKernelConf(
      "include GENERIC\nnodevice virtio_blk\noptions X=1\nnooptions X\ndevice a\nnodevice a\nnodevice b\ndevice b",
    );
    expect(conf.generic).toBe(true);
    expect([...conf.without.keys()]).toEqual(["virtio_blk", "a"]);
    expect([...conf.devices.keys()]).toEqual(["b"]);
    expect(conf.options).toEqual([]);
  });

  it.each([
    [
      "devise x",
      "K:1:1: unknown statement 'devise' (there is: device, ident, include, nodevice, nooptions, options)",
    ],
    ["\ndevice", "K:2:7: expected the name of a device, found the end of the line"],
    ["device a b", "K:1:10: expected ',', found 'b'"],
    ["device a,", "K:1:10: expected the name of a device, found the end of the line"],
    ["device ,a", "K:1:8: expected the name of a device, found ','"],
    ["ident", "K:1:6: expected a name, found the end of the line"],
    ["ident a b", "K:1:9: expected the end of the line, found 'b'"],
    ["include OTHER", "K:1:9: cannot include 'OTHER', only GENERIC"],
    ["include", "K:1:8: expected GENERIC, found the end of the line"],
    ['options "A', `K:1:11: expected '"', found the end of the line`],
  ])("refuses %j with file, line and column", (text, message) => {
    expect(() => parseKernelConf(text, "K")).toThrow(message);
  });
});
