// The rules of one function, by what they watch.

import { FunctionRules, type ObservedFunction } from "./function-rules.js";
import { InterruptRules, type ObservedMsix } from "./interrupt-rules.js";
import { LayoutRules, type ObservedLayout } from "./layout-rules.js";
import { LegacyRules, type ObservedLegacy } from "./legacy-rules.js";
import type { RuleBook } from "./rule-book.js";

/** Watchers of one function. */
export interface DeviceRules {
  readonly modern: FunctionRules;
  readonly legacy: LegacyRules;
  readonly interrupts: InterruptRules;
  readonly layout: LayoutRules;
}

/** Makes them. */
export function deviceRules(
  book: RuleBook,
  fn: ObservedFunction & ObservedLegacy,
  layout: ObservedLayout,
  msix: () => ObservedMsix,
): DeviceRules {
  const interrupts = new InterruptRules(book, fn.name, msix);
  return {
    modern: new FunctionRules(book, fn, interrupts),
    legacy: new LegacyRules(book, fn, interrupts),
    interrupts,
    layout: new LayoutRules(book, layout),
  };
}
