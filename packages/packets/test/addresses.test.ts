import { isIPv6 } from "node:net";
import { VirtioFault } from "@virtio/core";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  formatIpv4,
  formatIpv6,
  formatMac,
  multicastMac,
  parseIpv4,
  parseIpv6,
  parseMac,
  solicitedNode,
} from "../src/index.js";

const bytesOf = (size: number) => fc.uint8Array({ minLength: size, maxLength: size });

describe("addresses", () => {
  it("come back from text as they were", () => {
    fc.assert(
      fc.property(bytesOf(6), bytesOf(4), (mac, ip) => {
        expect(parseMac(formatMac(mac))).toEqual(mac);
        expect(parseIpv4(formatIpv4(ip))).toEqual(ip);
      }),
    );
    const zeros = fc.array(fc.constantFrom(0, 0, 0, 1, 0x20, 0xfe), {
      minLength: 16,
      maxLength: 16,
    });
    fc.assert(
      fc.property(zeros, (list) => {
        const bytes = Uint8Array.from(list);
        const text = formatIpv6(bytes);
        expect(parseIpv6(text)).toEqual(bytes);
        // The URL parser of the engine writes RFC 5952 as well.
        expect(`[${text}]`).toBe(new URL(`http://[${text}]/`).hostname);
      }),
    );
  });

  it("take the forms of RFC 4291 §2.2, and no others", () => {
    expect(formatIpv6(parseIpv6("2001:DB8:0:0:8:800:200C:417A"))).toBe("2001:db8::8:800:200c:417a");
    expect(formatIpv6(parseIpv6("::ffff:129.144.52.38"))).toBe("::ffff:8190:3426");
    expect(formatIpv6(parseIpv6("::"))).toBe("::");
    expect(formatIpv6(parseIpv6("1:0:0:2:0:0:0:3"))).toBe("1:0:0:2::3");
    expect(formatIpv6(parseIpv6("1:0:2:3:4:5:6:7"))).toBe("1:0:2:3:4:5:6:7");
    const text = fc.string({
      unit: fc.constantFrom(":", "::", "1", "fe80", "0", ".", "1.2.3.4", "g"),
    });
    fc.assert(
      fc.property(text, (candidate) => {
        let taken = true;
        try {
          parseIpv6(candidate);
        } catch (fault) {
          expect(fault).toBeInstanceOf(VirtioFault);
          taken = false;
        }
        expect(taken).toBe(isIPv6(candidate));
      }),
      { numRuns: 2000 },
    );
  });

  it.each(["", "52:54:00:12:34", "52-54-00-12-34-56", "52:54:00:12:34:5g", "5254:00:12:34:56:7"])(
    "refuses %j as a MAC address",
    (text) => {
      expect(() => parseMac(text)).toThrow(/not a MAC address/);
    },
  );

  it.each(["", "10.0.2", "10.0.2.256", "10.0.2.015", "10.0.2.-1", "10.0.2.1.1", "1e1.0.0.0"])(
    "refuses %j as an IPv4 address",
    (text) => {
      expect(() => parseIpv4(text)).toThrow(/not an IPv4 address/);
    },
  );

  it("of groups give the MAC addresses of RFC 1112 §6.4 and RFC 2464 §7", () => {
    expect(multicastMac("224.0.0.251")).toBe("01:00:5e:00:00:fb");
    expect(multicastMac("239.255.255.250")).toBe("01:00:5e:7f:ff:fa");
    expect(multicastMac("ff02::1:ff12:3456")).toBe("33:33:ff:12:34:56");
    expect(() => multicastMac("10.0.2.15")).toThrow(/group/);
    expect(() => multicastMac("fe80::1")).toThrow(/group/);
  });

  it("have the solicited-node group of RFC 4291 §2.7.1", () => {
    expect(solicitedNode("4037::01:800:200E:8C6C")).toBe("ff02::1:ff0e:8c6c");
  });
});
