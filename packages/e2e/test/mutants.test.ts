// Every named mutant is noticed: of the tests that claim each clause it breaks, one fails at least.
import { spawn } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { type Mutant, mutants } from "../../../scripts/mutants.js";

const root = fileURLToPath(new URL("../../../", import.meta.url));
const vitest = fileURLToPath(new URL("../../../node_modules/.bin/vitest", import.meta.url));

/** What vitest reports of one run, of it what is looked at. */
interface Outcome {
  readonly testResults: readonly {
    readonly assertionResults: readonly { readonly fullName: string; readonly status: string }[];
  }[];
}

/** Test files of a project that claim one of the clauses. */
function filesOf({ project, clauses }: Mutant): string[] {
  const folder = join(root, "packages", project.replace("@virtio/", ""), "test");
  return readdirSync(folder)
    .filter((name) => name.endsWith(".test.ts"))
    .map((name) => join(folder, name))
    .filter((path) => {
      const text = readFileSync(path, "utf8");
      return clauses.some((clause) => text.includes(clause));
    });
}

/** Runs the tests of its clauses against a mutant. Titles of those that failed. */
function against(mutant: Mutant): Promise<string[]> {
  return new Promise((resolve, reject) => {
    const args = [
      "run",
      ...filesOf(mutant),
      "--project",
      mutant.project,
      "--testNamePattern",
      `\\[(${mutant.clauses.join("|")})\\]`,
      // There is nothing to be kept apart, and it is quicker.
      "--pool=threads",
      "--no-isolate",
      "--reporter=json",
    ];
    const child = spawn(vitest, args, {
      cwd: root,
      env: { ...process.env, VIRTIO_MUTANT: mutant.name },
      stdio: ["ignore", "pipe", "pipe"],
    });
    let output = "";
    let errors = "";
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      output += text;
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      errors += text;
    });
    child.once("error", reject);
    child.once("close", () => {
      const json = output.slice(output.indexOf('{"numTotalTestSuites"'));
      try {
        const { testResults }: Outcome = JSON.parse(json);
        const tests = testResults.flatMap(({ assertionResults }) => assertionResults);
        resolve(tests.filter(({ status }) => status === "failed").map(({ fullName }) => fullName));
      } catch {
        reject(new Error(`no result of '${mutant.name}'\n${output}${errors}`));
      }
    });
  });
}

describe.concurrent("a driver that", () => {
  for (const mutant of mutants) {
    const fires = mutant.clauses.map((clause) => `[${clause} fires]`).join(" ");
    it(`${mutant.name} is noticed ${fires}`, { timeout: 60_000 }, async () => {
      const failed = await against(mutant);
      for (const clause of mutant.clauses)
        expect(failed).toContainEqual(expect.stringContaining(`[${clause}]`));
    });
  }
});
