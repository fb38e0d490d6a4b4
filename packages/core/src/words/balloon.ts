// The words of the traditional memory balloon device (virtio 1.4 §5.5).

/** Feature bits (§5.5.3). */
export enum BalloonFeature {
  MUST_TELL_HOST = 0,
  STATS_VQ = 1,
  DEFLATE_ON_OOM = 2,
  FREE_PAGE_HINT = 3,
  PAGE_POISON = 4,
  PAGE_REPORTING = 5,
}
