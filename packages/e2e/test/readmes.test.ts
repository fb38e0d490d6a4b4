// Everything that a README of this workspace shows is run.
//
//   ```ts       a whole program: types are checked, then it is run by Node against the built packages
//   ```sh       commands, one a line (`\` goes on, `#` is a comment); each must succeed
//   ```console  `$ command`, and below it what the command prints, standard error included. Lines are
//               compared one by one: `…` within a line stands for any text, a line that is only `…`
//               stands for any number of lines
//   ```text, json, conf, mermaid and blocks without a language are not run
//
// Commands that begin with `npm start`, `npx virtio`, `touch` or `echo` are run; those in NOT_RUN are for the reader;
// any other is an error. All blocks of one README share a folder, in order, in which the packages
// resolve and `disk.img` is a file of 1 MiB. Blocks that speak of QEMU are skipped where there is none.
// The packages have to be built: `npm test` does that first.
import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";

const root = fileURLToPath(new URL("../../../", import.meta.url));
const e2e = join(root, "packages/e2e");
const NOT_RUN = [/^npm (install|i|ci|test|run) ?/, /^git clone /, /^cd /];
const RUN_AS_IS = [/^(touch|echo) /];
const IGNORED = ["", "text", "json", "conf", "mermaid"];
const SECONDS = 60;

interface Block {
  /** The line of the fence, from 1. */
  readonly line: number;
  readonly language: string;
  readonly text: string;
}

interface Command {
  readonly command: string;
  /** The lines it has to print, if the README shows them. */
  readonly expected?: readonly string[];
}

interface Ran {
  readonly status: number;
  readonly output: string;
}

function blocks(markdown: string): Block[] {
  return [...markdown.matchAll(/^```(\w*)[^\n]*\n(.*?)^```$/gms)].map((found) => ({
    line: markdown.slice(0, found.index).split("\n").length,
    language: found[1] ?? "",
    text: found[2] ?? "",
  }));
}

/** The commands of an `sh` or `console` block. */
function commands({ language, text }: Block): Command[] {
  const lines = text
    .trimEnd()
    .replaceAll(/\\\n\s*/g, "")
    .split("\n");
  if (language === "sh")
    return lines
      .filter((line) => line.trim() !== "" && !line.startsWith("#"))
      .map((command) => ({ command }));
  const found: { command: string; expected: string[] }[] = [];
  for (const line of lines) {
    if (line.startsWith("$ ")) found.push({ command: line.slice(2), expected: [] });
    else found.at(-1)?.expected.push(line);
  }
  return found;
}

/** What is put before the arguments, so that the command runs in a folder that is not the workspace's own. */
const doors: readonly (readonly [door: RegExp, program: string])[] = [
  [/^npm start( --(?= |$))?/, `"$NODE" "$ROOT/scripts/run.mjs" start`],
  [/^npx virtio\b/, `"$NODE" "$ROOT/packages/virtio/dist/cli.js"`],
];

/** The command as a shell runs it here, or undefined if it is only for the reader. */
function runnable(command: string): string | undefined {
  if (NOT_RUN.some((pattern) => pattern.test(command))) return undefined;
  if (RUN_AS_IS.some((pattern) => pattern.test(command))) return command;
  for (const [door, program] of doors)
    if (door.test(command)) return command.replace(door, () => program);
  throw new Error(`this command is neither run nor in the list of those that are not: ${command}`);
}

/** Runs a program to its end; past the bound everything it started is ended with it. */
function run(folder: string, file: string, args: readonly string[]): Promise<Ran> {
  return new Promise((resolve, reject) => {
    const env = { ...process.env, NODE: process.execPath, ROOT: root, INIT_CWD: folder };
    const child = spawn(file, args, {
      cwd: folder,
      env,
      stdio: ["ignore", "pipe", "pipe"],
      detached: true,
    });
    let output = "";
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding("utf8").on("data", (text: string) => {
        output += text;
      });
    const bound = setTimeout(() => {
      if (child.pid !== undefined) process.kill(-child.pid, "SIGKILL");
    }, SECONDS * 1000);
    child.once("error", reject);
    child.once("close", (code, signal) => {
      clearTimeout(bound);
      if (code !== null) resolve({ status: code, output });
      else reject(new Error(`${file} ended by ${signal}, at most ${SECONDS} s\n${output}`));
    });
  });
}

/** Does a line of the README, with `…` for any text, fit what was printed? */
function fits(pattern: string, line: string): boolean {
  const parts = pattern
    .trimEnd()
    .split("…")
    .map((part) => part.replaceAll(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  return new RegExp(`^${parts.join(".*")}$`).test(line.trimEnd());
}

/** Where the output stops following the README, as a pair of lines; undefined if it follows to the end. */
function difference(
  expected: readonly string[],
  printed: readonly string[],
): { readonly expected: string; readonly printed: string } | undefined {
  const [first, ...rest] = expected;
  if (first === undefined)
    return printed.length === 0
      ? undefined
      : { expected: "(nothing more)", printed: printed[0] ?? "" };
  if (first.trim() === "…") {
    let last = difference(rest, printed);
    for (let skip = 1; last !== undefined && skip <= printed.length; skip += 1)
      last = difference(rest, printed.slice(skip));
    return last;
  }
  const [line] = printed;
  if (line === undefined || !fits(first, line))
    return { expected: first, printed: line ?? "(nothing more)" };
  return difference(rest, printed.slice(1));
}

/** esbuild comes with tsup: it strips the types. */
interface Stripper {
  transformSync(
    code: string,
    options: { loader: "ts"; format: "esm"; target: "node20" },
  ): { code: string };
}
const tsup = createRequire(join(root, "package.json")).resolve("tsup");
const esbuild: Stripper = createRequire(tsup)("esbuild");

const tsc = join(root, "node_modules/.bin/tsc");
const strict =
  "--ignoreConfig --noEmit --strict --skipLibCheck --module nodenext --target es2022 --lib es2023,esnext.disposable,dom --types node";

const hasQemu = spawnSync("qemu-system-x86_64", ["--version"]).status === 0;

/** Packages that are published. */
const isPublic = (name: string): boolean => {
  const manifest = join(root, "packages", name, "package.json");
  return existsSync(manifest) && JSON.parse(readFileSync(manifest, "utf8")).private !== true;
};

const readmes = [
  "README.md",
  ...readdirSync(join(root, "packages"))
    .filter(isPublic)
    .map((name) => `packages/${name}/README.md`),
];

describe.each(readmes)("%s", (readme) => {
  const path = join(root, readme);
  const found = existsSync(path) ? blocks(readFileSync(path, "utf8")) : [];
  let folder = "";
  beforeAll(() => {
    folder = mkdtempSync(join(e2e, ".readme-"));
    writeFileSync(join(folder, "disk.img"), new Uint8Array(1024 * 1024));
  });
  afterAll(() => {
    rmSync(folder, { recursive: true });
  });

  it("is there, and shows something that runs", () => {
    expect(found.filter(({ language }) => !IGNORED.includes(language))).not.toEqual([]);
  });

  /** A test of what needs QEMU if it speaks of it. */
  const shown = (block: Block, what: string, text: string, body: () => Promise<void>): void => {
    const needsQemu = /qemu|qcow2/i.test(text);
    const title = `line ${block.line}: ${what}${needsQemu ? " (needs QEMU)" : ""}`;
    it.skipIf(needsQemu && !hasQemu)(title, { timeout: 2 * SECONDS * 1000 }, body);
  };

  for (const block of found.filter(({ language }) => !IGNORED.includes(language))) {
    if (block.language === "ts")
      shown(block, "the program runs", block.text, async () => {
        const program = `line-${block.line}`;
        writeFileSync(join(folder, `${program}.ts`), block.text);
        const { code } = esbuild.transformSync(block.text, {
          loader: "ts",
          format: "esm",
          target: "node20",
        });
        writeFileSync(join(folder, `${program}.mjs`), code);
        const checked = await run(folder, tsc, [...strict.split(" "), `${program}.ts`]);
        expect(checked.status, checked.output).toBe(0);
        const ran = await run(folder, process.execPath, [`${program}.mjs`]);
        expect(ran.status, ran.output).toBe(0);
      });
    else if (block.language === "sh" || block.language === "console")
      for (const { command, expected } of commands(block)) {
        const script = runnable(command);
        if (script === undefined) continue;
        shown(block, `$ ${command}`, command, async () => {
          const { status, output } = await run(folder, "sh", ["-c", `{ ${script}\n} 2>&1`]);
          if (expected === undefined) expect(status, output).toBe(0);
          else {
            const printed = output === "" ? [] : output.replace(/\n$/, "").split("\n");
            expect(difference(expected, printed), output).toBeUndefined();
          }
        });
      }
    else
      it(`line ${block.line}: the language is known`, () => {
        expect.unreachable(`a block in ${block.language} is neither run nor ignored`);
      });
  }
});
