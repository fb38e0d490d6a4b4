import { describe, expect, it } from "vitest";
import { parseCommands } from "../src/shell/words.js";

describe("a command line", () => {
  it.each<[string, string[][]]>([
    ["dmesg", [["dmesg"]]],
    ["  diskinfo  -v\tvtbd0 ", [["diskinfo", "-v", "vtbd0"]]],
    ["a; b c;;d # e; f", [["a"], ["b", "c"], ["d"]]],
    ["# nothing", []],
    ["", []],
    ["dd if='a b' of=\"c; d\"", [["dd", "if=a b", "of=c; d"]]],
    ['kenv a="say \\"hi\\""', [["kenv", 'a=say "hi"']]],
    ["a b\\ c '' x#y", [["a", "b c", "", "x#y"]]],
    ["a '|'", [["a", "|"]]],
  ])("%j is %j", (line, commands) => {
    expect(parseCommands(line)).toEqual(commands);
  });

  it.each([
    ["a 'b", "column 3: expected another ', found the end of the line"],
    ['a "b\\"', 'column 3: expected another ", found the end of the line'],
    ["a \\", "column 4: expected a character after '\\', found the end of the line"],
    ["dmesg | grep x", "column 7: there is no '|' in this shell"],
    ["dmesg > x", "column 7: there is no '>' in this shell"],
  ])("refuses %j", (line, message) => {
    expect(() => parseCommands(line)).toThrow(message);
  });
});
