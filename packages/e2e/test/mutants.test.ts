// Every named mutant is noticed: the tests that claim the clause it breaks fail against it.
import { spawn } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { mutants } from "../../../scripts/mutants.js";

const root = fileURLToPath(new URL("../../../", import.meta.url));
const vitest = fileURLToPath(new URL("../../../node_modules/.bin/vitest", import.meta.url));

interface Outcome {
  readonly numFailedTests: number;
  readonly numPassedTests: number;
}

/** Test files of a project that claim the clause. */
function filesOf(project: string, clause: string): string[] {
  const folder = join(root, "packages", project.replace("@virtio/", ""), "test");
  return readdirSync(folder)
    .filter((name) => name.endsWith(".test.ts"))
    .map((name) => join(folder, name))
    .filter((path) => readFileSync(path, "utf8").includes(clause));
}

/** Runs the tests of one clause against one mutant. */
function against(mutant: string, project: string, clause: string): Promise<Outcome> {
  return new Promise((resolve, reject) => {
    const args = [
      "run",
      ...filesOf(project, clause),
      "--project",
      project,
      "--testNamePattern",
      `\\[${clause}\\]`,
      "--reporter=json",
    ];
    const child = spawn(vitest, args, {
      cwd: root,
      env: { ...process.env, VIRTIO_MUTANT: mutant },
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
        resolve(JSON.parse(json));
      } catch {
        reject(new Error(`no result of ${mutant}\n${output}${errors}`));
      }
    });
  });
}

describe.concurrent("a driver that", () => {
  for (const { clause, name, project } of mutants)
    it(`${name} is noticed [${clause} fires]`, { timeout: 60_000 }, async () => {
      const { numFailedTests } = await against(`${clause}: ${name}`, project, clause);
      expect(numFailedTests).toBeGreaterThan(0);
    });
});
