import { describe, expect, it } from "vitest";
import type { Test } from "./clause-ledger.mjs";
import { tally } from "./tally.mjs";

const run = { problems: [], filtered: false, ci: false };

function test(state: Test["state"], suite = "suite", note?: string): Test {
  const named = { project: "p", file: "p.test.ts", title: [suite, "works"], state };
  return note === undefined ? named : { ...named, note };
}

describe("the tally", () => {
  it("counts, and says nothing of skips where there were none", () => {
    const tests = [test("passed"), test("passed")];
    expect(tally({ ...run, tests })).toEqual({
      line: "2 passed, 0 failed",
      skips: [],
      problems: [],
      failed: false,
    });
  });

  it("lists skipped tests by what they need", () => {
    const tests = [
      test("passed"),
      test("skipped", "qemu machine (needs QEMU)"),
      test("skipped", "suite", "needs QEMU"),
      test("skipped", "tap (needs a tun device)"),
    ];
    expect(tally({ ...run, tests })).toMatchObject({
      line: "1 passed, 0 failed, 3 skipped",
      skips: ["skipped: needs QEMU: 2", "skipped: needs a tun device: 1"],
      failed: false,
    });
  });

  it.each(["suite", "suite (needs patience)"])("fails a skip in %j: no listed reason", (suite) => {
    const { line, problems, failed } = tally({ ...run, tests: [test("skipped", suite)] });
    expect(line).toBe("0 passed, 1 failed");
    expect(problems).toEqual([`p.test.ts: ${suite} > works: skipped without a listed reason`]);
    expect(failed).toBe(true);
  });

  it("takes tests that a name pattern left out for neither skipped nor failed", () => {
    const tests = [test("passed"), test("skipped")];
    expect(tally({ ...run, tests, filtered: true }).line).toBe("1 passed, 0 failed");
  });

  it("fails in CI when a QEMU test was skipped, not when there is no tun device", () => {
    const qemu = tally({ ...run, ci: true, tests: [test("skipped", "x (needs QEMU)")] });
    expect(qemu).toMatchObject({ line: "0 passed, 1 failed, 1 skipped", failed: true });
    const tun = tally({ ...run, ci: true, tests: [test("skipped", "x (needs a tun device)")] });
    expect(tun).toMatchObject({ line: "0 passed, 0 failed, 1 skipped", failed: false });
  });

  it("counts what failed besides tests", () => {
    const { line } = tally({ ...run, tests: [test("failed")], problems: ["a file did not load"] });
    expect(line).toBe("0 passed, 2 failed");
  });
});
