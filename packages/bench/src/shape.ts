// The shape of a load: one row of the table.

/** What is passed through the rings, and how. */
export interface Shape {
  readonly format: "split" | "packed";
  /** Buffers between two notify() calls. */
  readonly batch: number;
  /** 1: driver and device end take turns; 2: a thread each, over one SharedArrayBuffer. */
  readonly threads: 1 | 2;
  /** Segments of a chain: all but the last are readable. */
  readonly segments: number;
  /** Chains of several segments lie in indirect tables. */
  readonly indirect: boolean;
  /** Chains are slots of a template. */
  readonly template: boolean;
  /** Pairs of queues, which take turns. */
  readonly queues: number;
}

/** `split-b32-t1-s3-indirect` */
export function nameOf(shape: Shape): string {
  return [
    `${shape.format}-b${shape.batch}-t${shape.threads}`,
    ...(shape.segments > 1 ? [`s${shape.segments}`] : []),
    ...(shape.indirect ? ["indirect"] : []),
    ...(shape.template ? ["template"] : []),
    ...(shape.queues > 1 ? [`q${shape.queues}`] : []),
  ].join("-");
}

/** A shape, from what differs from one thread, one segment, direct, one queue. */
export function shape(format: Shape["format"], batch: number, rest: Partial<Shape> = {}): Shape {
  return {
    format,
    batch,
    threads: 1,
    segments: 1,
    indirect: false,
    template: false,
    queues: 1,
    ...rest,
  };
}
