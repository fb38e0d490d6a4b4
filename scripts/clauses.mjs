// npm run clauses [-- --json FILE] [--missing [SCOPE]]: the ledger of clauses.
//
// Prints proven/excused/absent/total for each scope and level of docs/driver-clauses.tsv, from the results
// of the last complete test run. If there are none, or the sources have changed since, the tests are
// run first. Exit status 1 when a rule of the ledger is broken.
import { spawnSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { keepLedger, parseClauses, parsePage, renderLedger } from "./clause-ledger.mjs";
import { root, testInputs } from "./sources.mjs";
import { dropResults, readResults } from "./test-results.mjs";

const { values, positionals } = parseArgs({
  options: { json: { type: "string" }, missing: { type: "boolean" } },
  allowPositionals: true,
});

/** The results of the present sources. */
function results() {
  const sources = testInputs();
  const last = readResults();
  if (last?.sources === sources) return last.tests;
  console.error("clauses: the last complete test run is not of these sources: running the tests");
  dropResults();
  const vitest = join(root, "node_modules/.bin/vitest");
  spawnSync(vitest, ["run"], { cwd: root, stdio: ["ignore", 2, 2] });
  const now = readResults();
  if (now === undefined) throw new Error("clauses: the test run left no results");
  return now.tests;
}

const read = (/** @type {string} */ name) => readFileSync(join(root, "docs", name), "utf8");
const clauses = parseClauses(read("driver-clauses.tsv"));
const ledger = keepLedger(clauses, results(), parsePage(read("clauses.md")));

console.log(renderLedger(ledger.counts));
if (values.missing) {
  const [scope] = positionals;
  for (const clause of ledger.missing)
    if (scope === undefined || clause.scope === scope)
      console.log(`${clause.id}\t${clause.scope}\t${clause.level}\t${clause.section}`);
}
if (values.json !== undefined) {
  const file = resolve(process.env["INIT_CWD"] ?? root, values.json);
  writeFileSync(file, `${JSON.stringify(ledger.counts, null, 2)}\n`);
}
for (const problem of ledger.problems) console.error(`clauses: ${problem}`);
process.exitCode = ledger.problems.length === 0 ? 0 : 1;
