// Options of vtcon. It has no tunables, as FreeBSD's has none.

/** Options of vtcon. */
export interface VtconOptions {
  /**
   * Called while the device is attached, before it is live (DRIVER_OK), when it takes emergency writes: for early output. Attach goes on
   * when what it returns is over, and fails as it fails.
   */
  readonly early?: (emergencyWrite: (byte: number) => Promise<void>) => Promise<void> | void;
}
