// npm run bench -- ring|gc [--json FILE] [--gate] [--rounds N] [--only REGEX]
import { writeFileSync } from "node:fs";
import { resolve } from "node:path";
import { parseArgs } from "node:util";
import { gc } from "./gc.js";
import { missed, type Row, ring, ringShapes, sixQueueShapes } from "./ring.js";
import { nameOf } from "./shape.js";

const usage = `usage: npm run bench -- ring|gc [--json FILE] [--gate] [--rounds N] [--only REGEX]
  ring            the rings beside their twins in C, buffers a second
  gc              garbage collections while 10^7 buffers pass through six queues, and six-queue rows
  --json FILE     also write the rows to FILE
  --gate          exit status 1 when a target is missed
  --rounds N      rounds of each row, at least 5 (default 7)
  --only REGEX    only rows whose name matches`;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    json: { type: "string" },
    gate: { type: "boolean", default: false },
    rounds: { type: "string", default: "7" },
    only: { type: "string", default: "" },
  },
});
const rounds = Number(values.rounds);
const only = new RegExp(values.only);
const [what, ...more] = positionals;
const refused: string[] = [];
let rows: readonly Row[] = [];
if ((what !== "ring" && what !== "gc") || more.length > 0 || !(rounds >= 5)) {
  console.error(usage);
  process.exit(2);
}
const named = what === "ring" ? ringShapes : sixQueueShapes;
if (what === "gc") {
  const collections = await gc();
  if (collections > 0) refused.push(`${collections} garbage collections`);
}
rows = await ring(
  named.filter((shape) => only.test(nameOf(shape))),
  rounds,
);
refused.push(...missed(rows));
if (values.json !== undefined) {
  const folder = process.env["INIT_CWD"] ?? process.cwd();
  writeFileSync(resolve(folder, values.json), `${JSON.stringify(rows, null, 2)}\n`);
}
if (refused.length > 0) {
  console.log(`not met: ${refused.join(", ")}`);
  if (values.gate) process.exitCode = 1;
}
