// Reproducible chance.

/** Whole numbers below `n`. */
export type Draw = (n: number) => number;

/** xorshift32: the same numbers for the same seed. */
export function random(seed: number): Draw {
  let state = seed | 0 || 1;
  return (n) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % n;
  };
}

/** The seed of this run: VIRTIO_TEST_SEED, or a fresh one; printed so that a failure can be replayed. */
export function runSeed(): number {
  const seed = Number(process.env["VIRTIO_TEST_SEED"] ?? Date.now() % 1_000_000_007);
  console.log(`seed ${seed} (VIRTIO_TEST_SEED=${seed} replays this run)`);
  return seed;
}
