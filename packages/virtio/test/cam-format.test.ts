import { describe, expect, it } from "vitest";
import { decode, dump, parseBytes, statusName } from "../src/shell/commands/cam-format.js";

describe("camcontrol", () => {
  it("takes CDBs as hexadecimal bytes", () => {
    expect([...parseBytes("12 0 0x00,0 24\t0")]).toEqual([0x12, 0, 0, 0, 0x24, 0]);
    for (const text of ["12 100", "12 g", "-1", "0x"])
      expect(() => parseBytes(text)).toThrow(/is no byte/);
  });

  it("shows what came in by a format", () => {
    const bytes = Uint8Array.of(1, 2, 3, 4, 0x41, 0x42, 0x20, 0x20, 0xff, 0xff, 0xff, 0xff);
    expect(decode(bytes, "i1 i2 s4 z4 i4")).toBe("1 515 AB 4294967295\n");
    expect(decode(bytes, "{Name} s+4 c4 {Rest} i3")).toBe("AB   16777215\n");
    // Beyond the end there is nothing.
    expect(decode(bytes, "s12 z4 i4")).toBe(" 0\n");
    for (const format of ["i0", "i5", "q4", "z", "i"])
      expect(() => decode(bytes, format)).toThrow(/is no field of a format/);
  });

  it("shows bytes, sixteen a line", () => {
    expect(dump(Uint8Array.from({ length: 18 }, (_, i) => i))).toBe(
      "00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f\n10 11\n",
    );
  });

  it("names a status as CAM does", () => {
    expect([statusName(2), statusName(0x18), statusName(0x55)]).toEqual([
      "Check Condition",
      "Reservation Conflict",
      "85",
    ]);
  });
});
