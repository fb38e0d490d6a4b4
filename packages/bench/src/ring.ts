// npm run bench -- ring: the rings beside their twins in C, in one run.
import { fileURLToPath } from "node:url";
import { type Load, pinning, startLoad } from "./process.js";
import { nameOf, type Shape, shape } from "./shape.js";
import { buildTwins, type Twins } from "./twin.js";

/** One row, the same form for every benchmark. Buffers a second. */
export interface Row {
  readonly name: string;
  readonly ours: number;
  readonly peer: number;
  /** ours / peer */
  readonly ratio: number;
}

/** Ratios that have to be reached. */
const TARGETS: Readonly<Record<string, number>> = {
  "split-b32-t1": 0.45,
  "split-b1-t1": 0.3,
  "packed-b32-t1": 0.45,
  "packed-b1-t1": 0.25,
  "split-b32-t1-template": 0.6,
};

const formats = ["split", "packed"] as const;
const batches = [1, 32];

/** Every shape of the report. A chain of one segment never takes an indirect table, so that has no row. */
export const ringShapes: readonly Shape[] = formats.flatMap((format) =>
  batches.flatMap((batch) => [
    ...([1, 2] as const).flatMap((threads) => [
      shape(format, batch, { threads }),
      shape(format, batch, { threads, segments: 3 }),
      shape(format, batch, { threads, segments: 3, indirect: true }),
    ]),
    shape(format, batch, { template: true }),
    shape(format, batch, { segments: 3, template: true }),
  ]),
);

/** The rows with six pairs of queues alive. */
export const sixQueueShapes: readonly Shape[] = formats.flatMap((format) =>
  batches.map((batch) => shape(format, batch, { queues: 6 })),
);

/** The command of a load in JavaScript. */
export function ourCommand(shape: Shape): readonly string[] {
  const load = fileURLToPath(new URL("./load.js", import.meta.url));
  return [process.execPath, load, JSON.stringify(shape)];
}

const median = (values: readonly number[]): number => {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >>> 1;
  return sorted.length % 2 === 1
    ? (sorted[middle] as number)
    : ((sorted[middle - 1] as number) + (sorted[middle] as number)) / 2;
};

/** Measures one shape: `rounds` rounds, in each of them ours, the safe twin and the unchecked one in turn. */
async function measure(shape: Shape, twins: Twins, rounds: number): Promise<Row> {
  const commands = [
    ourCommand(shape),
    twins.command("safe", shape),
    twins.command("unchecked", shape),
  ];
  const loads: Load[] = [];
  const times: [number[], number[], number[]] = [[], [], []];
  try {
    for (const command of commands)
      loads.push(await startLoad(command, shape.threads, shape.batch));
    for (let round = 0; round < rounds; round++)
      for (const [i, load] of loads.entries()) times[i]?.push((await load.round()).ns);
  } finally {
    for (const load of loads) load.end();
  }
  const [ours, safe, unchecked] = times.map(median) as [number, number, number];
  const name = nameOf(shape);
  const ratio = safe / ours;
  const target = TARGETS[name];
  const verdict =
    target === undefined
      ? ""
      : `  ${ratio >= target ? "met" : "MISSED"} (at least ${target.toFixed(2)})`;
  const spread = (Math.max(...times[0]) - Math.min(...times[0])) / ours;
  console.log(
    [
      name.padEnd(24),
      ours.toFixed(1).padStart(9),
      safe.toFixed(1).padStart(9),
      unchecked.toFixed(1).padStart(11),
      ratio.toFixed(3).padStart(8),
      `${(spread * 100).toFixed(0)} %`.padStart(8),
    ].join("") + verdict,
  );
  return { name, ours: 1e9 / ours, peer: 1e9 / safe, ratio };
}

/** Measures shapes and prints the table. */
export async function ring(shapes: readonly Shape[], rounds: number): Promise<readonly Row[]> {
  const twins = buildTwins();
  const rows: Row[] = [];
  try {
    console.log(
      `ring: @virtio/ring beside its twin in C (cc -O2), Node ${process.version}; ` +
        `median of ${rounds} interleaved rounds, ${pinning(1)}, two threads ${pinning(2)}`,
    );
    console.log(`${"ns a buffer".padEnd(24)}     ours   C safe  C unchecked   ratio   spread`);
    for (const each of shapes) rows.push(await measure(each, twins, rounds));
  } finally {
    twins.remove();
  }
  return rows;
}

/** The names of the gated rows that are below their target. */
export function missed(rows: readonly Row[]): string[] {
  return rows.filter(({ name, ratio }) => ratio < (TARGETS[name] ?? 0)).map(({ name }) => name);
}
