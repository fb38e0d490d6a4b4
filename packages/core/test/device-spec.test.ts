import { describe, expect, it } from "vitest";
import { parseDeviceSpec, parseSize, VirtioFault } from "../src/index.js";

const messageOf = (work: () => unknown): string => {
  try {
    work();
  } catch (error) {
    return error instanceof VirtioFault ? `${error.code}: ${error.message}` : String(error);
  }
  return "nothing";
};

describe("device specifications", () => {
  it("read into options", () => {
    expect(
      parseDeviceSpec(
        "blk,file=a=b.img,serial=ABC123,readonly=on,queue-size=64,vectors=0,indirect=off,flush=off",
      ),
    ).toEqual({
      kind: "blk",
      file: "a=b.img",
      serial: "ABC123",
      readonly: true,
      queueSize: 64,
      vectors: 0,
      indirect: false,
      features: { FLUSH: false },
    });
    expect(parseDeviceSpec("blk,size=64m")).toEqual({ kind: "blk", size: 64 << 20 });
    expect(parseDeviceSpec("scsi,size=1m,target=2,lun=300,queues=4,change=off")).toEqual({
      ...{ kind: "scsi", size: 1 << 20, target: 2, lun: 300, queues: 4 },
      features: { CHANGE: false },
    });
    expect(parseDeviceSpec("console,ports=2,backend=host,legacy=on")).toEqual({
      ...{ kind: "console", ports: 2, backend: "host", legacy: "on" },
    });
    expect(parseDeviceSpec("balloon,page_reporting=on")).toEqual({
      ...{ kind: "balloon", features: { PAGE_REPORTING: true } },
    });
  });

  it("say what is wrong, where, and what would be right", () => {
    expect(messageOf(() => parseDeviceSpec("floppy"))).toBe(
      "INVALID: device 'floppy': no such kind 'floppy' (there is: blk, net, scsi, balloon, console)",
    );
    expect(messageOf(() => parseDeviceSpec("blk,fil=x"))).toMatch(
      /^INVALID: device 'blk,fil=x': unknown key 'fil' \(blk takes: file, size, format, /,
    );
    expect(messageOf(() => parseDeviceSpec("blk,file"))).toBe(
      "INVALID: device 'blk,file': 'file' is not of the form key=value",
    );
    expect(messageOf(() => parseDeviceSpec("blk,file="))).toBe(
      "INVALID: device 'blk,file=': file=: is empty",
    );
    expect(messageOf(() => parseDeviceSpec("blk,format=vmdk"))).toBe(
      "INVALID: device 'blk,format=vmdk': format=vmdk: is not one of raw, qcow2",
    );
    expect(messageOf(() => parseDeviceSpec("blk,size=1000"))).toBe(
      "INVALID: device 'blk,size=1000': size=1000: is not a positive multiple of 512",
    );
    expect(messageOf(() => parseDeviceSpec("blk,size=1x"))).toMatch(
      /'1x' is not a size such as 512, 64k or 1m/,
    );
    expect(messageOf(() => parseDeviceSpec("blk,serial=123456789012345678901"))).toMatch(
      /is not 1 to 20 printable ASCII characters/,
    );
    expect(messageOf(() => parseDeviceSpec("blk,readonly=yes"))).toMatch(/is not one of on, off/);
    expect(messageOf(() => parseDeviceSpec("blk,queue-size=0"))).toMatch(
      /is not a whole number from 1 to 32768/,
    );
    expect(messageOf(() => parseDeviceSpec("blk,file=a,file=b"))).toMatch(/'file' is given twice/);
    expect(messageOf(() => parseDeviceSpec("blk,file=a,size=1m"))).toMatch(
      /'size' does not go with 'file'/,
    );
    expect(messageOf(() => parseDeviceSpec("blk,constructor=on"))).toMatch(
      /unknown key 'constructor'/,
    );
    expect(messageOf(() => parseDeviceSpec("toString"))).toMatch(/no such kind 'toString'/);
  });

  it("take sizes as dd(1) does", () => {
    expect(["512", "1b", "2k", "1M", "1g"].map(parseSize)).toEqual([
      512,
      512,
      2048,
      1 << 20,
      1 << 30,
    ]);
  });
});

describe("network device specifications", () => {
  it("read into options", () => {
    expect(
      parseDeviceSpec(
        "net,mac=52:54:00:AB:cd:01,backend=stream:/tmp/a=b.sock,queues=4,mtu=9000,packed=on,mrg_rxbuf=off,rss=on",
      ),
    ).toEqual({
      kind: "net",
      mac: "52:54:00:ab:cd:01",
      backend: "stream:/tmp/a=b.sock",
      queues: 4,
      mtu: 9000,
      packed: true,
      features: { MRG_RXBUF: false, RSS: true },
    });
    expect(parseDeviceSpec("net")).toEqual({ kind: "net" });
  });

  it.each([
    ["net,backend=bridge", "is not one of gateway, loop, pcap:FILE, stream:SOCKET, tap:IF"],
    ["net,backend=tap:more-than-15-bytes", "is not one of gateway, loop"],
    ["net,backend=tap:", "is not one of gateway, loop, pcap:FILE, stream:SOCKET, tap:IF"],
    ["net,mac=52:54:00:12:34", "is not the MAC address of one station, such as 52:54:00:12:34:56"],
    ["net,mac=53:54:00:12:34:56", "is not the MAC address of one station"],
    ["net,queues=0", "is not a whole number from 1 to 256"],
    ["net,mtu=67", "is not a whole number from 68 to 65535"],
    ["net,file=disk.img", "unknown key 'file' (net takes: mac, backend, queues, mtu, legacy, "],
    ["net,discard=off", "unknown key 'discard'"],
  ])("that say nothing a network device can be are refused: %s", (spec, message) => {
    expect(messageOf(() => parseDeviceSpec(spec))).toContain(message);
  });
});
