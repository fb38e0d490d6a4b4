// The rules of the ledger of clauses, as pure functions: which clauses of docs/driver-clauses.tsv
// are proven by tests, which docs/clauses.md excuses or says to be of features that no driver here has
// (absent), and what is wrong with any of it.
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
 * @property {number} absent
 *
 * @typedef {object} Page what docs/clauses.md says of clauses that are not proven
 * @property {readonly { id: string, why: string }[]} excuses
 * @property {readonly { id: string, feature: string }[]} absent
 *
 * @typedef {object} Ledger
 * @property {Record<string, Record<string, Count>>} counts scope -> level -> count
 * @property {Clause[]} missing neither proven, nor excused, nor absent
 * @property {string[]} problems each one fails the run
 */

/** The share of a scope's clauses that may be excused. */
export const EXCUSED_SHARE = 0.1;

const ID = "[A-Z][A-Z0-9]*(?:-[A-Z0-9]+)*-[0-9]+";
const NAMED = new RegExp(`\\[(${ID})([^\\]]*)\\]`, "g");
const EXCUSE = new RegExp(`^\\|\\s*(${ID})\\s*\\|([^|]*)\\|\\s*$`);
const ABSENT = new RegExp(`^\\|([^|]*)\\|\\s*(${ID}(?:, ${ID})*)\\s*\\|\\s*$`);

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
 * Reads both tables of docs/clauses.md: the rows `| id | why no peer can see it |`, and
 * `| feature | ids of clauses that bind only who uses it, between commas |`.
 *
 * @param {string} text
 * @returns {Page}
 */
export function parsePage(text) {
  const lines = text.split("\n");
  const excuses = lines.flatMap((line) => {
    const [, id, why] = EXCUSE.exec(line) ?? [];
    return id === undefined || why === undefined ? [] : [{ id, why: why.trim() }];
  });
  const absent = lines.flatMap((line) => {
    const [, feature = "", ids] = ABSENT.exec(line) ?? [];
    return (ids?.split(", ") ?? []).map((id) => ({ id, feature: feature.trim() }));
  });
  return { excuses, absent };
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
 * What is wrong with the excuses, and with what is absent.
 *
 * @param {readonly Clause[]} clauses
 * @param {Page} page
 * @param {ReadonlySet<string>} proven
 * @returns {string[]}
 */
function pageProblems(clauses, { excuses, absent }, proven) {
  const known = new Set(clauses.map((clause) => clause.id));
  const seen = new Set();
  const rows = [
    ...excuses.map(({ id, why }) => ({ id, text: why, what: "excused without a reason" })),
    ...absent.map(({ id, feature }) => ({ id, text: feature, what: "absent without a feature" })),
  ];
  return rows.flatMap(({ id, text, what }) => {
    const problems = [];
    if (!known.has(id)) problems.push(`${id} is not in docs/driver-clauses.tsv`);
    if (seen.has(id)) problems.push(`${id} stands there twice`);
    if (text === "") problems.push(`${id} is ${what}`);
    if (proven.has(id)) problems.push(`${id} is proven: it needs no row`);
    seen.add(id);
    return problems.map((problem) => `docs/clauses.md: ${problem}`);
  });
}

/**
 * Applies the rules.
 *
 * @param {readonly Clause[]} clauses
 * @param {readonly Test[]} tests of one complete run
 * @param {Page} page
 * @returns {Ledger}
 */
export function keepLedger(clauses, tests, page) {
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
  const excused = new Set(page.excuses.map(({ id }) => id));
  const absent = new Set(page.absent.map(({ id }) => id));

  /** @type {Record<string, Record<string, Count>>} */
  const counts = {};
  for (const { id, scope, level } of clauses) {
    counts[scope] ??= {};
    counts[scope][level] ??= { total: 0, proven: 0, excused: 0, absent: 0 };
    const count = counts[scope][level];
    count.total += 1;
    if (proven.has(id)) count.proven += 1;
    else if (excused.has(id)) count.excused += 1;
    else if (absent.has(id)) count.absent += 1;
  }

  const problems = [...titleProblems(clauses, tests), ...pageProblems(clauses, page, proven)];
  for (const [scope, levels] of Object.entries(counts)) {
    const { total: all, absent: without, excused: share } = sum(Object.values(levels));
    const total = all - without;
    const limit = Math.floor(total * EXCUSED_SHARE);
    if (share > limit)
      problems.push(
        `docs/clauses.md: ${scope}: ${share} of ${total} clauses are excused, at most ${limit} may be`,
      );
  }
  const missing = clauses.filter(
    ({ id }) => !proven.has(id) && !excused.has(id) && !absent.has(id),
  );
  return { counts, missing, problems };
}

/**
 * @param {readonly Count[]} counts
 * @returns {Count}
 */
function sum(counts) {
  const all = { total: 0, proven: 0, excused: 0, absent: 0 };
  for (const { total, proven, excused, absent } of counts) {
    all.total += total;
    all.proven += proven;
    all.excused += excused;
    all.absent += absent;
  }
  return all;
}

const LEVELS = ["MUST", "MUST NOT", "SHOULD", "SHOULD NOT", "MAY"];

/**
 * The counts as an aligned table, scope by level, each cell `proven/excused/absent/total`.
 *
 * @param {Ledger["counts"]} counts
 * @returns {string}
 */
export function renderLedger(counts) {
  const cell = (/** @type {Count | undefined} */ count) =>
    count === undefined ? "-" : `${count.proven}/${count.excused}/${count.absent}/${count.total}`;
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
  return ["proven/excused/absent/total", ...lines.map((line) => line.join("  "))].join("\n");
}
