import { describe, expect, it } from "vitest";
import {
  type Clause,
  clausesNamed,
  keepLedger,
  parseClauses,
  parsePage,
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

const nothing = { excuses: [], absent: [] };

function test(title: string, state: Test["state"] = "passed"): Test {
  return { project: "p", file: "p.test.ts", title: ["suite", title], state };
}

describe("the ledger of clauses", () => {
  it("calls a clause proven when a test claims it and another shows that its checker fires", () => {
    const { counts, missing, problems } = keepLedger(
      clauses,
      [test(claim("A-1")), test(fires("A-1")), test(claim("A-2")), test(fires("A-3"))],
      nothing,
    );
    expect(counts).toEqual({
      core: {
        MUST: { total: 8, proven: 1, excused: 0, absent: 0 },
        MAY: { total: 2, proven: 0, excused: 0, absent: 0 },
      },
    });
    expect(missing.map((clause) => clause.id)).toContain("A-2");
    expect(missing.map((clause) => clause.id)).not.toContain("A-1");
    expect(problems).toEqual([]);
  });

  it.each(["failed", "skipped", "pending"] as const)("takes no proof from a %s test", (state) => {
    const { counts } = keepLedger(
      clauses,
      [test(claim("A-1"), state), test(fires("A-1"))],
      nothing,
    );
    expect(counts["core"]?.["MUST"]?.proven).toBe(0);
  });

  it("lets one failed test unprove a clause that others prove", () => {
    const tests = [test(claim("A-1")), test(fires("A-1")), test(claim("A-1"), "failed")];
    expect(keepLedger(clauses, tests, nothing).counts["core"]?.["MUST"]?.proven).toBe(0);
  });

  it("refuses an id that is not in the table", () => {
    expect(keepLedger(clauses, [test(claim("A-77"))], nothing).problems).toEqual([
      `p.test.ts: suite > ${claim("A-77")}: clause A-77 is not in docs/driver-clauses.tsv`,
    ]);
  });

  it("refuses brackets that say neither of the two", () => {
    const { problems } = keepLedger(clauses, [test(`sees it [${"A-1"} fired]`)], nothing);
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
    const one = keepLedger(clauses, [], { ...nothing, excuses: [{ id: "A-1", why: "no trace" }] });
    expect(one.counts["core"]?.["MUST"]?.excused).toBe(1);
    expect(one.problems).toEqual([]);
    const excuses = ["A-1", "A-2"].map((id) => ({ id, why: "no trace" }));
    expect(keepLedger(clauses, [], { ...nothing, excuses }).problems).toEqual([
      "docs/clauses.md: core: 2 of 10 clauses are excused, at most 1 may be",
    ]);
  });

  it("counts apart what binds only users of a feature that there is not", () => {
    const absent = ["A-1", "A-9"].map((id) => ({ id, feature: "TUNNEL" }));
    const { counts, missing, problems } = keepLedger(clauses, [], { ...nothing, absent });
    expect(counts["core"]).toEqual({
      MUST: { total: 8, proven: 0, excused: 0, absent: 1 },
      MAY: { total: 2, proven: 0, excused: 0, absent: 1 },
    });
    expect(missing.map(({ id }) => id)).not.toContain("A-1");
    expect(problems).toEqual([]);
    // Nor does it make room for excuses.
    const excuses = [{ id: "A-2", why: "no trace" }];
    expect(keepLedger(clauses, [], { excuses, absent }).problems).toEqual([
      "docs/clauses.md: core: 1 of 8 clauses are excused, at most 0 may be",
    ]);
  });

  it.each([
    ["A-1", "TUNNEL", "A-1 is proven: it needs no row"],
    ["A-77", "TUNNEL", "A-77 is not in docs/driver-clauses.tsv"],
    ["A-2", "", "A-2 is absent without a feature"],
    ["A-3", "TUNNEL", "A-3 stands there twice"],
  ])("refuses that %s is absent with %j", (id, feature, problem) => {
    const proof = [test(claim("A-1")), test(fires("A-1"))];
    const excuses = [{ id: "A-3", why: "no trace" }];
    const page = { excuses: id === "A-3" ? excuses : [], absent: [{ id, feature }] };
    expect(keepLedger(clauses, proof, page).problems).toContain(`docs/clauses.md: ${problem}`);
  });

  it.each([
    ["A-1", "no trace", "A-1 is proven: it needs no row"],
    ["A-77", "no trace", "A-77 is not in docs/driver-clauses.tsv"],
    ["A-2", "", "A-2 is excused without a reason"],
  ])("refuses the excuse %s with the reason %j", (id, why, problem) => {
    const proof = [test(claim("A-1")), test(fires("A-1"))];
    expect(keepLedger(clauses, proof, { ...nothing, excuses: [{ id, why }] }).problems).toEqual([
      `docs/clauses.md: ${problem}`,
    ]);
  });

  it("reads the tables", () => {
    expect(parseClauses("id\tsection\tlevel\tscope\nA-1\t2.1 X\tMUST NOT\tnet\tdo\tsee\n")).toEqual(
      [{ id: "A-1", section: "2.1 X", level: "MUST NOT", scope: "net" }],
    );
    const excuses = "| id | why |\n| -- | -- |\n| A-1 | no trace |\n| A-2 | |\n";
    const absent = "| feature | ids |\n| -- | -- |\n| UDP tunnels | A-3, B-C-4 |\n|  | A-5 |\n";
    expect(parsePage(excuses + absent)).toEqual({
      excuses: [
        { id: "A-1", why: "no trace" },
        { id: "A-2", why: "" },
      ],
      absent: [
        { id: "A-3", feature: "UDP tunnels" },
        { id: "B-C-4", feature: "UDP tunnels" },
        { id: "A-5", feature: "" },
      ],
    });
  });

  it("prints scopes by levels, with totals", () => {
    const { counts } = keepLedger(clauses, [test(claim("A-1")), test(fires("A-1"))], nothing);
    expect(renderLedger(counts).split("\n")).toEqual([
      "proven/excused/absent/total",
      "scope     MUST  MUST NOT   SHOULD  SHOULD NOT      MAY       all",
      "core   1/0/0/8         -        -           -  0/0/0/2  1/0/0/10",
      "all    1/0/0/8   0/0/0/0  0/0/0/0     0/0/0/0  0/0/0/2  1/0/0/10",
    ]);
  });
});
