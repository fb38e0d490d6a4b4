// Every named mutant is noticed: of the tests that claim each clause it breaks, one fails at least.
import { fork } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, it } from "vitest";
import { type Mutant, mutants } from "../../../scripts/mutants.js";

const root = fileURLToPath(new URL("../../../", import.meta.url));
const server = fork(join(root, "scripts/mutation-server.mjs"));
afterAll(async () => {
  server.disconnect();
  await once(server, "exit");
});

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

/** What the server answers. */
interface Answer {
  readonly failed?: readonly string[];
  readonly error?: string;
}

/** Runs the tests of its clauses against a mutant. Titles of those that failed. */
async function against(mutant: Mutant): Promise<readonly string[]> {
  const { name, project, file, clauses } = mutant;
  const pattern = `\\[(${clauses.join("|")})\\]`;
  server.send({ mutant: name, project, file, files: filesOf(mutant), pattern });
  const [{ failed, error }] = (await once(server, "message")) as [Answer];
  if (failed === undefined) throw new Error(`no result of '${name}': ${error}`);
  return failed;
}

describe("a driver that", () => {
  for (const mutant of mutants) {
    const fires = mutant.clauses.map((clause) => `[${clause} fires]`).join(" ");
    it(`${mutant.name} is noticed ${fires}`, { timeout: 60_000 }, async () => {
      const failed = await against(mutant);
      for (const clause of mutant.clauses)
        expect(failed).toContainEqual(expect.stringContaining(`[${clause}]`));
    });
  }
});
