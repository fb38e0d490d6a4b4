// Programs on the PATH.
import { access, constants, stat } from "node:fs/promises";
import { delimiter, join, resolve } from "node:path";

/** The file that running `name` would run: a path as it is, a bare name from the PATH; undefined when there is none. */
export async function findExecutable(name: string): Promise<string | undefined> {
  const candidates = name.includes("/")
    ? [resolve(name)]
    : (process.env["PATH"] ?? "")
        .split(delimiter)
        .filter((folder) => folder !== "")
        .map((folder) => join(folder, name));
  for (const candidate of candidates) if (await isExecutable(candidate)) return candidate;
  return undefined;
}

async function isExecutable(path: string): Promise<boolean> {
  try {
    await access(path, constants.X_OK);
    return (await stat(path)).isFile();
  } catch {
    // Not there, or not for us: access(2) says no by throwing.
    return false;
  }
}
