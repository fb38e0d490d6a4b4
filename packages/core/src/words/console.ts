// The words of the console device (virtio 1.4 §5.3).

/** Feature bits (§5.3.3). */
export enum ConsoleFeature {
  SIZE = 0,
  MULTIPORT = 1,
  EMERG_WRITE = 2,
}
