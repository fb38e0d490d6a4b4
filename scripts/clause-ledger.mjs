// The rules of the ledger of clauses, as pure functions: which clauses of docs/driver-clauses.tsv
// are proven by tests, which are excused by docs/clauses.md, and what is wrong with either.
//
// A passed test whose title contains [ID] claims the clause; a passed test whose title contains
// [ID fires] shows that the checker behind it notices a violation. Proven is a clause with both.

/**
 * @typedef {object} Clause one line of the clause table
 * @property {string} id
 * @property {string} section of virtio 1.4
 * @property {string} level MUST, MUST NOT, SHOULD, SHOULD NOT or MAY
 * @property {string} scope
 *
 * @typedef {object} Test one result of a test run
 * @property {string} project
 * @property {string} file relative to the workspace
 * @property {readonly string[]} title suites, then the test
 * @property {"passed" | "failed" | "skipped" | "pending"} state
 * @property {string} [note] what the test said when it skipped itself
 *
 * @typedef {object} Count
 * @property {number} total
 * @property {number} proven
 * @property {number} excused
 *
 * @typedef {object} Ledger
 * @property {Record<string, Record<string, Count>>} counts scope -> level -> count
 * @property {Clause[]} missing neither proven nor excused
 * @property {string[]} problems each one fails the run
 */

/** The share of a scope's clauses that may be excused. */
export const EXCUSED_SHARE = 0.1;

const ID = "[A-Z][A-Z0-9]*(?:-[A-Z0-9]+)*-[0-9]+";
const NAMED = new RegExp(`\\[(${ID})([^\\]]*)\\]`, "g");
const EXCUSE = new RegExp(`^\\|\\s*(${ID})\\s*\\|([^|]*)\\|\\s*$`);

/**
 * Reads the clause table: tab-separated, one line of headings.
 *
 * @param {string} text
 * @returns {Clause[]}
 */
export function parseClauses(text) {
  return text
    .split("\n")
    .slice(1)
    .filter((line) => line !== "")
    .map((line) => {
      const [id = "", section = "", level = "", scope = ""] = line.split("\t");
      return { id, section, level, scope };
    });
}

/**
 * Reads the excuses: the rows of the table `| id | why no peer can see it |`.
 *
 * @param {string} text
 * @returns {{ id: string, why: string }[]}
 */
export function parseExcuses(text) {
  return text.split("\n").flatMap((line) => {
    const [, id, why] = EXCUSE.exec(line) ?? [];
    return id === undefined || why === undefined ? [] : [{ id, why: why.trim() }];
  });
}

/**
 * The clauses that a title names.
 *
 * @param {readonly string[]} title
 * @returns {{ id: string, role: "claims" | "fires" | "malformed" }[]}
 */
export function clausesNamed(title) {
  return [...title.join(" > ").matchAll(NAMED)].map(([, id = "", rest]) => ({
    id,
    role: rest === "" ? "claims" : rest === " fires" ? "fires" : "malformed",
  }));
}

/**
 * What is wrong with the clauses named in titles: an id that the table does not have, or brackets
 * that say neither [ID] nor [ID fires].
 *
 * @param {readonly Clause[]} clauses
 * @param {readonly Test[]} tests
 * @returns {string[]}
 */
export function titleProblems(clauses, tests) {
  const known = new Set(clauses.map((clause) => clause.id));
  return tests.flatMap((test) =>
    clausesNamed(test.title).flatMap(({ id, role }) => {
      const where = `${test.file}: ${test.title.join(" > ")}`;
      if (!known.has(id)) return [`${where}: clause ${id} is not in docs/driver-clauses.tsv`];
      if (role === "malformed") return [`${where}: write [${id}] or [${id} fires]`];
      return [];
    }),
  );
}

/**
 * What is wrong with the excuses.
 *
 * @param {readonly Clause[]} clauses
 * @param {readonly { id: string, why: string }[]} excuses
 * @param {ReadonlySet<string>} proven
 * @returns {string[]}
 */
function excuseProblems(clauses, excuses, proven) {
  const known = new Set(clauses.map((clause) => clause.id));
  const seen = new Set();
  return excuses.flatMap(({ id, why }) => {
    const problems = [];
    if (!known.has(id)) problems.push(`${id} is not in docs/driver-clauses.tsv`);
    if (seen.has(id)) problems.push(`${id} is excused twice`);
    if (why === "") problems.push(`${id} is excused without a reason`);
    if (proven.has(id)) problems.push(`${id} is proven: it needs no excuse`);
    seen.add(id);
    return problems.map((problem) => `docs/clauses.md: ${problem}`);
  });
}

/**
 * Applies the rules.
 *
 * @param {readonly Clause[]} clauses
 * @param {readonly Test[]} tests of one complete run
 * @param {readonly { id: string, why: string }[]} excuses
 * @returns {Ledger}
 */
export function keepLedger(clauses, tests, excuses) {
  const held = { claims: new Set(), fires: new Set() };
  const broken = new Set();
  for (const test of tests)
    for (const { id, role } of clausesNamed(test.title)) {
      if (test.state === "failed") broken.add(id);
      else if (test.state === "passed" && role !== "malformed") held[role].add(id);
    }
  const proven = new Set(
    clauses
      .map((clause) => clause.id)
      .filter((id) => held.claims.has(id) && held.fires.has(id) && !broken.has(id)),
  );
  const excused = new Set(excuses.map((excuse) => excuse.id));

  /** @type {Record<string, Record<string, Count>>} */
  const counts = {};
  for (const { id, scope, level } of clauses) {
    counts[scope] ??= {};
    counts[scope][level] ??= { total: 0, proven: 0, excused: 0 };
    const count = counts[scope][level];
    count.total += 1;
    if (proven.has(id)) count.proven += 1;
    else if (excused.has(id)) count.excused += 1;
  }

  const problems = [...titleProblems(clauses, tests), ...excuseProblems(clauses, excuses, proven)];
  for (const [scope, levels] of Object.entries(counts)) {
    const { total, excused: share } = sum(Object.values(levels));
    const limit = Math.floor(total * EXCUSED_SHARE);
    if (share > limit)
      problems.push(
        `docs/clauses.md: ${scope}: ${share} of ${total} clauses are excused, at most ${limit} may be`,
      );
  }
  const missing = clauses.filter(({ id }) => !proven.has(id) && !excused.has(id));
  return { counts, missing, problems };
}

/**
 * @param {readonly Count[]} counts
 * @returns {Count}
 */
function sum(counts) {
  const all = { total: 0, proven: 0, excused: 0 };
  for (const { total, proven, excused } of counts) {
    all.total += total;
    all.proven += proven;
    all.excused += excused;
  }
  return all;
}

const LEVELS = ["MUST", "MUST NOT", "SHOULD", "SHOULD NOT", "MAY"];

/**
 * The counts as an aligned table, scope by level, each cell `proven/excused/total`.
 *
 * @param {Ledger["counts"]} counts
 * @returns {string}
 */
export function renderLedger(counts) {
  const cell = (/** @type {Count | undefined} */ count) =>
    count === undefined ? "-" : `${count.proven}/${count.excused}/${count.total}`;
  const scopes = Object.entries(counts).sort(([a], [b]) => (a < b ? -1 : 1));
  const all = scopes.map(([, levels]) => levels);
  const rows = [
    ["scope", ...LEVELS, "all"],
    ...scopes.map(([scope, levels]) => [
      scope,
      ...LEVELS.map((level) => cell(levels[level])),
      cell(sum(Object.values(levels))),
    ]),
    [
      "all",
      ...LEVELS.map((level) => cell(sum(all.flatMap((levels) => levels[level] ?? [])))),
      cell(sum(all.flatMap((levels) => Object.values(levels)))),
    ],
  ];
  const widths = rows[0]?.map((_, column) =>
    Math.max(...rows.map((row) => row[column]?.length ?? 0)),
  );
  const lines = rows.map((row) =>
    row.map((text, column) => {
      const width = widths?.[column] ?? 0;
      return column === 0 ? text.padEnd(width) : text.padStart(width);
    }),
  );
  return ["proven/excused/total", ...lines.map((line) => line.join("  "))].join("\n");
}
