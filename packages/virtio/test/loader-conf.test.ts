import { describe, expect, it } from "vitest";
import { parseLoaderConf, parseSetting } from "../src/index.js";

const values = (text: string): Record<string, string> =>
  Object.fromEntries(parseLoaderConf(text).map(({ name, value }) => [name, value]));

describe("loader.conf", () => {
  it("holds one assignment a line, quoted or plain, with comments and blank lines between", () => {
    expect(
      values(`
# modules
virtio_load="YES"   # with a comment
  hw.vtblk.0.no_ident=1
hw.vtblk.writecache_mode = -1
foo_name="@scope/some package"
empty=""
`),
    ).toEqual({
      virtio_load: "YES",
      "hw.vtblk.0.no_ident": "1",
      "hw.vtblk.writecache_mode": "-1",
      foo_name: "@scope/some package",
      empty: "",
    });
  });

  it("takes the character after a backslash as it is, in quotes", () => {
    expect(values(String.raw`a="say \"hi\" \\ # no comment"`)).toEqual({
      a: String.raw`say "hi" \ # no comment`,
    });
  });

  it("reads lines that end in CR LF", () => {
    expect(values('a="1"\r\nb=2\r\n')).toEqual({ a: "1", b: "2" });
  });

  it("says where each assignment was made", () => {
    expect(parseLoaderConf("\n\na=1", "boot/my.conf")[0]?.origin).toBe("boot/my.conf:3");
  });

  it.each([
    ['virtio_load="YES', `loader.conf:1:17: expected '"', found the end of the line`],
    ['\n\n  x="a\\"', `loader.conf:3:9: expected '"', found the end of the line`],
    ["\nvirtio_load", "loader.conf:2:12: expected '=', found the end of the line"],
    ["virtio load=1", "loader.conf:1:8: expected '=', found 'l'"],
    ["a=", `loader.conf:1:3: expected '"' or a plain word, found the end of the line`],
    ["a='YES'", `loader.conf:1:3: expected '"' or a plain word, found '''`],
    ["a= # nothing", `loader.conf:1:4: expected '"' or a plain word, found '#'`],
    ['a="1" b="2"', "loader.conf:1:7: expected the end of the line, found 'b'"],
    ["foo_name=./module.js", "loader.conf:1:11: expected quotes around the value, found '/'"],
    ['="YES"', "loader.conf:1:1: expected a name, found '='"],
    ["9lives=1", "loader.conf:1:1: expected a name, found '9'"],
  ])("refuses %j with file, line and column", (text, message) => {
    expect(() => parseLoaderConf(text)).toThrow(message);
  });
});

describe("a setting typed by hand", () => {
  it("splits at the first equals sign", () => {
    expect(parseSetting("a.b=c=d", "--set")).toEqual({
      name: "a.b",
      value: "c=d",
      origin: "--set",
    });
  });

  it.each(["a", "=1", "a b=1", ""])("refuses %j", (text) => {
    expect(() => parseSetting(text, "--set")).toThrow(
      `--set '${text}': not of the form NAME=VALUE`,
    );
  });
});
