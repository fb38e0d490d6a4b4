// The rule book: what drivers must and must not do, as far as a device can see it (driver clauses of virtio 1.4).

/** A rule that a driver broke. */
export interface Violation {
  /** Clause id: `STATUS-2`. */
  readonly clause: string;
  /** Device that saw it: `blk0`. */
  readonly device: string;
  /** What was seen. */
  readonly what: string;
}

/** Collects what the checkers in the models see. */
export class RuleBook {
  readonly violations: Violation[] = [];
  /** Called at each violation: throw here to stop a driver at its first mistake. */
  onViolation: ((violation: Violation) => void) | null = null;
  readonly #kept = new Map<string, number>();

  /** One look of one checker. */
  check(clause: string, kept: boolean, device: string, what: () => string): void {
    if (kept) this.#kept.set(clause, this.kept(clause) + 1);
    else this.broken(clause, device, what());
  }

  /** A rule was seen broken. */
  broken(clause: string, device: string, what: string): void {
    const violation = { clause, device, what };
    this.violations.push(violation);
    this.onViolation?.(violation);
  }

  /** How often a checker looked and found the rule kept. */
  kept(clause: string): number {
    return this.#kept.get(clause) ?? 0;
  }
}
