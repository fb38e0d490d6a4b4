// What the last lines of a test run say, as a pure function of its results.

/** The only reasons for which a test may be skipped: suites say "(needs QEMU)" in their title. */
export const REASONS = ["QEMU", "Linux", "a tun device", "huge pages"];

/** Of these, the ones that CI cannot accept: a container can install what is missing. */
const MENDABLE = ["QEMU"];

/**
 * @typedef {object} Tally
 * @property {string} line `N passed, N failed`, and `, N skipped` where tests were
 * @property {string[]} skips one line a reason
 * @property {string[]} problems each counts as a failure
 * @property {boolean} failed
 */

/**
 * Why a test was skipped: what its title, its suites' titles or its own words say after "needs".
 *
 * @param {import("./clause-ledger.mjs").Test} test
 * @returns {string | undefined}
 */
function reason({ title, note }) {
  for (const text of [...title, note ?? ""]) {
    const [, needs] = /\bneeds ([^()[\],;:]+)/.exec(text) ?? [];
    if (needs !== undefined) return needs.trim();
  }
  return undefined;
}

/**
 * Counts a run.
 *
 * @param {object} run
 * @param {readonly import("./clause-ledger.mjs").Test[]} run.tests
 * @param {readonly string[]} run.problems what failed besides tests: files that do not load, errors that nothing caught, clauses that do not exist
 * @param {boolean} run.filtered tests were selected by name: the others are not skips
 * @param {boolean} run.ci
 * @returns {Tally}
 */
export function tally({ tests, problems: others, filtered, ci }) {
  const problems = [...others];
  /** @type {Map<string, number>} */
  const skips = new Map();
  const count = { passed: 0, failed: 0, skipped: 0 };
  for (const test of tests) {
    if (test.state === "passed" || test.state === "failed") {
      count[test.state] += 1;
      continue;
    }
    const needs = reason(test);
    if (needs !== undefined && REASONS.includes(needs)) {
      count.skipped += 1;
      skips.set(needs, (skips.get(needs) ?? 0) + 1);
    } else if (!filtered)
      problems.push(`${test.file}: ${test.title.join(" > ")}: skipped without a listed reason`);
  }
  if (ci)
    for (const needs of MENDABLE)
      if (skips.has(needs)) problems.push(`CI must not skip what needs ${needs}: install it`);
  const failed = count.failed + problems.length;
  return {
    line: `${count.passed} passed, ${failed} failed${count.skipped > 0 ? `, ${count.skipped} skipped` : ""}`,
    skips: [...skips].map(([needs, times]) => `skipped: needs ${needs}: ${times}`),
    problems,
    failed: failed > 0,
  };
}
