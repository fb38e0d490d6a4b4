// Combinations of parameters: all of them, or so few that each pair of values still meets once.

type Axes = Readonly<Record<string, readonly unknown[]>>;
type Point<A extends Axes> = { [K in keyof A]: A[K][number] };

/** Every combination that is allowed. */
export function product<A extends Axes>(
  axes: A,
  allowed: (point: Point<A>) => boolean = () => true,
): Point<A>[] {
  let points: Record<string, unknown>[] = [{}];
  for (const [name, values] of Object.entries(axes))
    points = points.flatMap((point) => values.map((value) => ({ ...point, [name]: value })));
  return (points as Point<A>[]).filter(allowed);
}

/** The pairs of values that meet in one combination. */
function pairs(point: Readonly<Record<string, unknown>>): string[] {
  const named = Object.entries(point).map(([name, value]) => `${name}=${String(value)}`);
  return named.flatMap((a, i) => named.slice(i + 1).map((b) => `${a}&${b}`));
}

/**
 * A pairwise covering array: allowed combinations in which each pair of values that can meet does meet. Greedy: always the
 * combination that brings most pairs not yet covered, so the same axes give the same array.
 */
export function pairwise<A extends Axes>(
  axes: A,
  allowed: (point: Point<A>) => boolean = () => true,
): Point<A>[] {
  const candidates = product(axes, allowed).map((point) => ({ point, pairs: pairs(point) }));
  const open = new Set(candidates.flatMap((candidate) => candidate.pairs));
  const chosen: Point<A>[] = [];
  while (open.size > 0) {
    let best = candidates[0];
    let most = 0;
    for (const candidate of candidates) {
      const brings = candidate.pairs.filter((pair) => open.has(pair)).length;
      if (brings > most) {
        most = brings;
        best = candidate;
      }
    }
    if (best === undefined) break;
    chosen.push(best.point);
    for (const pair of best.pairs) open.delete(pair);
  }
  return chosen;
}
