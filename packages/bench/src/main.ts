// npm run bench -- ring|gc|blk|net [--json FILE] [--gate] [--rounds N] [--only REGEX]
import { writeFileSync } from "node:fs";
import { resolve } from "node:path";
import { parseArgs } from "node:util";
import { blk, blkNames, missedBlk } from "./blk.js";
import { gc } from "./gc.js";
import { net, netNames } from "./net.js";
import { missed, type Row, ring, ringShapes, sixQueueShapes } from "./ring.js";
import { nameOf } from "./shape.js";

const usage = `usage: npm run bench -- ring|gc|blk|net [--json FILE] [--gate] [--rounds N] [--only REGEX]
  ring            the rings beside their twins in C, buffers a second
  gc              garbage collections while 10^7 buffers pass through six queues, and six-queue rows
  blk             vtblk beside a loop that only copies the blocks, requests a second
  net             vtnet: forwarding beside a loop that only copies the frames, latency, bulk TCP, garbage
  --json FILE     also write the rows to FILE
  --gate          exit status 1 when a target is missed
  --rounds N      rounds of each row, at least 5 (default 7)
  --only REGEX    only rows whose name matches
  --help          this text`;

/** A mistake in the command: one line, and exit status 2. */
function refuse(what: string): never {
  console.error(`bench: ${what} (npm run bench -- --help shows the usage)`);
  process.exit(2);
}

function options() {
  try {
    return parseArgs({
      allowPositionals: true,
      options: {
        json: { type: "string" },
        gate: { type: "boolean", default: false },
        rounds: { type: "string", default: "7" },
        only: { type: "string", default: "" },
        help: { type: "boolean", default: false },
      },
    });
  } catch (error) {
    // Of Node's text the first sentence: what comes after it is advice for positional arguments, which are words here.
    return refuse(String((error as Error).message).split(/\.(?:\s|$)/)[0] ?? "");
  }
}

function pattern(source: string): RegExp {
  try {
    return new RegExp(source);
  } catch {
    return refuse(`--only '${source}' is not a regular expression`);
  }
}

const { values, positionals } = options();
if (values.help) {
  console.log(usage);
  process.exit(0);
}
const [what, ...more] = positionals;
if (what === undefined) refuse("no benchmark is named: one of ring, gc, blk, net");
if (what !== "ring" && what !== "gc" && what !== "blk" && what !== "net")
  refuse(`no benchmark '${what}': there are ring, gc, blk and net`);
if (more.length > 0) refuse(`one benchmark at a time: '${more.join(" ")}' is too much`);
const rounds = Number(values.rounds);
if (!(Number.isInteger(rounds) && rounds >= 5))
  refuse(`--rounds '${values.rounds}' is not a whole number from 5 on`);
const only = pattern(values.only);
const ringRows = what === "gc" ? sixQueueShapes : ringShapes;
const names = what === "blk" ? blkNames : what === "net" ? netNames : ringRows.map(nameOf);
if (!names.some((name) => only.test(name)))
  refuse(`--only '${values.only}' matches no row of ${what}, such as ${names[0]}`);

const refused: string[] = [];
if (what === "gc") {
  const collections = await gc();
  if (collections > 0) refused.push(`${collections} garbage collections`);
}
const rows: Row[] = [];
if (what === "blk") {
  rows.push(...(await blk(only, rounds)));
  refused.push(...missedBlk(rows));
} else if (what === "net") {
  const measured = await net(only, rounds);
  rows.push(...measured.rows);
  refused.push(...measured.missed);
} else {
  const shapes = ringRows.filter((shape) => only.test(nameOf(shape)));
  rows.push(...(await ring(shapes, rounds)));
  refused.push(...missed(rows));
}
if (values.json !== undefined) {
  const folder = process.env["INIT_CWD"] ?? process.cwd();
  writeFileSync(resolve(folder, values.json), `${JSON.stringify(rows, null, 2)}\n`);
}
if (refused.length > 0) {
  console.log(`not met: ${refused.join(", ")}`);
  if (values.gate) process.exitCode = 1;
}
