// Fingerprints of what is in the tree: the set-up asks whether anything has to be built, the ledger
// of clauses asks whether the results of the tests are those of the present sources.
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";

/** The folder of the workspace. */
export const root = dirname(dirname(fileURLToPath(import.meta.url)));

/** What the build of every package depends on. */
const shared = [
  "package.json",
  "pnpm-lock.yaml",
  "turbo.json",
  "tsconfig.base.json",
  "tsconfig.node.json",
  "tsconfig.portable.json",
  "tsup.config.base.ts",
];

/**
 * Every file below a file or folder, in a stable order; nothing where there is none.
 *
 * @param {string} path
 * @returns {string[]}
 */
function files(path) {
  if (!existsSync(path)) return [];
  const entries = readdirSync(path, { withFileTypes: true, recursive: true });
  return entries
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
    .sort();
}

/**
 * @param {readonly string[]} paths absolute paths of files
 * @returns {string} a hash of their names and contents
 */
function digest(paths) {
  const hash = createHash("sha256");
  for (const path of paths) hash.update(`${relative(root, path)}\0`).update(readFileSync(path));
  return hash.digest("hex");
}

/** @returns {string[]} the folders of the packages, absolute */
export function packageFolders() {
  const packages = join(root, "packages");
  return readdirSync(packages)
    .map((name) => join(packages, name))
    .filter((folder) => existsSync(join(folder, "package.json")))
    .sort();
}

/** The configuration of one package: the files beside its `src`. */
function settings(/** @type {string} */ folder) {
  return readdirSync(folder)
    .filter((name) => /^(package\.json|tsconfig.*\.json|tsup\.config\.ts)$/.test(name))
    .map((name) => join(folder, name))
    .sort();
}

/** @returns {string} the fingerprint of everything that the built packages are made of */
export function buildInputs() {
  return digest([
    ...shared.map((name) => join(root, name)),
    ...packageFolders().flatMap((folder) => [...settings(folder), ...files(join(folder, "src"))]),
  ]);
}

/** @returns {string} the fingerprint of everything that the tests say something about */
export function testInputs() {
  return digest([
    ...[...shared, "vitest.config.ts", "README.md"]
      .map((name) => join(root, name))
      .filter(existsSync),
    ...files(join(root, "scripts")),
    ...packageFolders().flatMap((folder) => [
      ...settings(folder),
      ...files(join(folder, "src")),
      ...files(join(folder, "test")),
      ...[join(folder, "README.md")].filter(existsSync),
    ]),
  ]);
}

/** @returns {string[]} the test files of the workspace, absolute */
export function testFiles() {
  const folders = [
    join(root, "scripts"),
    ...packageFolders().map((folder) => join(folder, "test")),
  ];
  return folders.flatMap(files).filter((path) => path.endsWith(".test.ts"));
}

/** @returns {string[]} the built files that the packages promise in `exports` and `bin`, absolute */
export function buildOutputs() {
  return packageFolders().flatMap((folder) => {
    const { exports = {}, bin = {} } = JSON.parse(
      readFileSync(join(folder, "package.json"), "utf8"),
    );
    const promised = [...Object.values(exports), ...Object.values(bin)].flatMap((entry) =>
      typeof entry === "string" ? [entry] : [entry.types, entry.default],
    );
    return promised.map((path) => join(folder, path));
  });
}
