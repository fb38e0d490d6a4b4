// Views of guest memory, kept: a driver uses its buffers again and again, and a new view costs a third of a copy of 4 KiB.

/** Views that are kept, a power of two. */
const SLOTS = 1024;

const none = new Uint8Array(0);

/** The views that were asked for lately. */
export class GuestViews {
  readonly #regions: Uint8Array[] = new Array<Uint8Array>(SLOTS).fill(none);
  readonly #views: Uint8Array[] = new Array<Uint8Array>(SLOTS).fill(none);
  readonly #offsets = new Float64Array(SLOTS);

  /** `length` bytes of a region's bytes from `offset` on. */
  of(region: Uint8Array, offset: number, length: number): Uint8Array {
    // Neighbours get slots of their own, whether they are pages or 512 bytes long.
    const slot = ((offset >>> 12) ^ (offset >>> 9)) & (SLOTS - 1);
    const view = this.#views[slot] as Uint8Array;
    if (view.length === length && this.#offsets[slot] === offset && this.#regions[slot] === region)
      return view;
    const fresh = region.subarray(offset, offset + length);
    this.#regions[slot] = region;
    this.#offsets[slot] = offset;
    this.#views[slot] = fresh;
    return fresh;
  }
}
