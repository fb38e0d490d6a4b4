import { describe, expect, it } from "vitest";
import {
  type Clause,
  clausesNamed,
  keepLedger,
  parseClauses,
  parseExcuses,
  renderLedger,
  type Test,
} from "./clause-ledger.mjs";

const clauses: Clause[] = Array.from({ length: 10 }, (_, n) => ({
  id: `A-${n}`,
  section: "2.1",
  level: n < 8 ? "MUST" : "MAY",
  scope: "core",
}));

/** Titles are made here: written out they would themselves name clauses. */
const claim = (id: string): string => `keeps it [${id}]`;
const fires = (id: string): string => `notices a breach [${id} fires]`;

function test(title: string, state: Test["state"] = "passed"): Test {
  return { project: "p", file: "p.test.ts", title: ["suite", title], state };
}

describe("the ledger of clauses", () => {
  it("calls a clause proven when a test claims it and another shows that its checker fires", () => {
    const { counts, missing, problems } = keepLedger(
      clauses,
      [test(claim("A-1")), test(fires("A-1")), test(claim("A-2")), test(fires("A-3"))],
      [],
    );
    expect(counts).toEqual({
      core: {
        MUST: { total: 8, proven: 1, excused: 0 },
        MAY: { total: 2, proven: 0, excused: 0 },
      },
    });
    expect(missing.map((clause) => clause.id)).toContain("A-2");
    expect(missing.map((clause) => clause.id)).not.toContain("A-1");
    expect(problems).toEqual([]);
  });

  it.each(["failed", "skipped", "pending"] as const)("takes no proof from a %s test", (state) => {
    const { counts } = keepLedger(clauses, [test(claim("A-1"), state), test(fires("A-1"))], []);
    expect(counts["core"]?.["MUST"]?.proven).toBe(0);
  });

  it("lets one failed test unprove a clause that others prove", () => {
    const tests = [test(claim("A-1")), test(fires("A-1")), test(claim("A-1"), "failed")];
    expect(keepLedger(clauses, tests, []).counts["core"]?.["MUST"]?.proven).toBe(0);
  });

  it("refuses an id that is not in the table", () => {
    expect(keepLedger(clauses, [test(claim("A-77"))], []).problems).toEqual([
      `p.test.ts: suite > ${claim("A-77")}: clause A-77 is not in docs/driver-clauses.tsv`,
    ]);
  });

  it("refuses brackets that say neither of the two", () => {
    const { problems } = keepLedger(clauses, [test(`sees it [${"A-1"} fired]`)], []);
    expect(problems).toEqual([expect.stringContaining("write [A-1] or [A-1 fires]")]);
  });

  it("reads several ids from one title, and none from other brackets", () => {
    const title = ["x [virtio 1.4 §2.7.8]", `y [${"A-1"}] [${"B-C-2"} fires] [MSI-X]`];
    expect(clausesNamed(title)).toEqual([
      { id: "A-1", role: "claims" },
      { id: "B-C-2", role: "fires" },
    ]);
  });

  it("counts an excuse up to a tenth of a scope, and refuses more", () => {
    const one = keepLedger(clauses, [], [{ id: "A-1", why: "no trace" }]);
    expect(one.counts["core"]?.["MUST"]?.excused).toBe(1);
    expect(one.problems).toEqual([]);
    const excuses = ["A-1", "A-2"].map((id) => ({ id, why: "no trace" }));
    expect(keepLedger(clauses, [], excuses).problems).toEqual([
      "docs/clauses.md: core: 2 of 10 clauses are excused, at most 1 may be",
    ]);
  });

  it.each([
    ["A-1", "no trace", "A-1 is proven: it needs no excuse"],
    ["A-77", "no trace", "A-77 is not in docs/driver-clauses.tsv"],
    ["A-2", "", "A-2 is excused without a reason"],
  ])("refuses the excuse %s with the reason %j", (id, why, problem) => {
    const proof = [test(claim("A-1")), test(fires("A-1"))];
    expect(keepLedger(clauses, proof, [{ id, why }]).problems).toEqual([
      `docs/clauses.md: ${problem}`,
    ]);
  });

  it("reads the tables", () => {
    expect(parseClauses("id\tsection\tlevel\tscope\nA-1\t2.1 X\tMUST NOT\tnet\tdo\tsee\n")).toEqual(
      [{ id: "A-1", section: "2.1 X", level: "MUST NOT", scope: "net" }],
    );
    expect(parseExcuses("| id | why |\n| -- | -- |\n| A-1 | no trace |\n| A-2 | |\n")).toEqual([
      { id: "A-1", why: "no trace" },
      { id: "A-2", why: "" },
    ]);
  });

  it("prints scopes by levels, with totals", () => {
    const { counts } = keepLedger(clauses, [test(claim("A-1")), test(fires("A-1"))], []);
    expect(renderLedger(counts).split("\n")).toEqual([
      "proven/excused/total",
      "scope   MUST  MUST NOT  SHOULD  SHOULD NOT    MAY     all",
      "core   1/0/8         -       -           -  0/0/2  1/0/10",
      "all    1/0/8     0/0/0   0/0/0       0/0/0  0/0/2  1/0/10",
    ]);
  });
});
