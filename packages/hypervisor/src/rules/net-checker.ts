// What the rules of a network device have in common.
import { ReservedFeature } from "@virtio/core";
import type { NetFeature } from "@virtio/core/net";
import type { ModelHost } from "../device-model.js";
import type { NetConfiguration } from "../models/net-config.js";
import type { NetFilter } from "../models/net-filter.js";
import type { RuleBook } from "./rule-book.js";

/** What the rules need to know. */
export interface NetRulesOptions {
  readonly book: RuleBook;
  readonly device: string;
  readonly host: ModelHost;
  readonly configuration: NetConfiguration;
  readonly filter: NetFilter;
}

/** Looks, for one device. */
export class NetChecker {
  readonly options: NetRulesOptions;

  constructor(options: NetRulesOptions) {
    this.options = options;
  }

  /** One look: see RuleBook. */
  check(clause: string, kept: boolean, what: () => string): void {
    const { book, device } = this.options;
    book.check(clause, kept, device, what);
  }

  /** Whether the driver accepted a feature. */
  has(bit: NetFeature | ReservedFeature): boolean {
    return this.options.configuration.has(bit);
  }

  /** The driver uses the legacy interface: its words are in its own byte order, which is this host's. */
  get legacy(): boolean {
    return !this.has(ReservedFeature.VERSION_1);
  }

  /** A legacy driver that has to give each part of a chain a descriptor of its own (§5.1.9.8). */
  get legacyFraming(): boolean {
    return this.legacy && !this.has(ReservedFeature.ANY_LAYOUT);
  }
}
