// Runs tests against mutants of the drivers, one at a time, in one vitest, which reads once what no mutant changes: each order of the
// parent process is answered by the titles of the tests that failed, or by what went wrong.
import { join } from "node:path";
import { createVitest } from "vitest/node";
import { root } from "./sources.mjs";

/**
 * @typedef {object} Order
 * @property {string} mutant its name
 * @property {string} file the source file that it changes
 * @property {string} project
 * @property {readonly string[]} files of tests
 * @property {string} pattern of titles
 */

// The tests' own process has a vitest around it, which must not be taken for this one.
for (const key of Object.keys(process.env))
  if (/^(VITEST|TINYPOOL)/.test(key)) delete process.env[key];
const vitest = await createVitest("test", {
  root,
  watch: false,
  reporters: [{}],
  // There is nothing to be kept apart, and it is quicker.
  pool: "threads",
  isolate: false,
});

/** @param {Order} order @returns {Promise<string[]>} titles of the tests that failed */
async function against({ mutant, file, project, files, pattern }) {
  process.env["VIRTIO_MUTANT"] = mutant;
  vitest.invalidateFile(join(root, file));
  vitest.setGlobalTestNamePattern(pattern);
  const chosen = vitest.getProjectByName(project);
  const { testModules } = await vitest.runTestSpecifications(
    files.map((path) => chosen.createSpecification(path)),
  );
  vitest.invalidateFile(join(root, file));
  const [error] = testModules.flatMap((module) => module.errors());
  if (error !== undefined) throw error;
  return testModules.flatMap((module) =>
    [...module.children.allTests("failed")].map(({ fullName }) => fullName),
  );
}

process.on("message", (/** @type {Order} */ order) =>
  against(order).then(
    (failed) => process.send?.({ failed }),
    (error) => process.send?.({ error: String(error?.stack ?? error) }),
  ),
);
process.once("disconnect", () => process.exit());
