// npm run bench -- gc: no garbage is made on the data path.
import { startLoad } from "./process.js";
import { ourCommand } from "./ring.js";
import { nameOf, shape } from "./shape.js";

/** Buffers that are passed while garbage collections are counted. */
const BUFFERS = 10_000_000;

/** Counts garbage collections in each format with six queues alive; returns how many there were in all. */
export async function gc(): Promise<number> {
  let all = 0;
  for (const format of ["split", "packed"] as const)
    for (const template of [false, true])
      for (const [segments, indirect] of [
        [1, false],
        [3, false],
        [3, true],
      ] as const) {
        const six = shape(format, 32, { segments, indirect, template, queues: 6 });
        const load = await startLoad(ourCommand(six), 1, six.batch);
        try {
          const { collections, ns } = await load.round(BUFFERS);
          all += collections;
          console.log(
            `gc: ${nameOf(six)}: ` +
              `${collections} collections in ${BUFFERS} buffers (${ns.toFixed(1)} ns each)`,
          );
        } finally {
          load.end();
        }
      }
  return all;
}
