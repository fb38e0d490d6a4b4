// The results of the last complete test run, as the reporter leaves them for the ledger of clauses.
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { root } from "./sources.mjs";

const path = join(root, "node_modules/.cache/test-results.json");

/**
 * @typedef {object} Results
 * @property {string} sources fingerprint of the sources when the run began
 * @property {readonly import("./clause-ledger.mjs").Test[]} tests
 */

/** @param {Results} results of a run of every test */
export function writeResults(results) {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, `${JSON.stringify(results, null, 1)}\n`);
}

/** @returns {Results | undefined} */
export function readResults() {
  return existsSync(path) ? JSON.parse(readFileSync(path, "utf8")) : undefined;
}

/** Forgets the last run. */
export function dropResults() {
  rmSync(path, { force: true });
}
