// Names that a device gives its ports (virtio 1.4 §5.3.6.2; FreeBSD's vtcon_ctrl_port_name_event).
import { Errno } from "@virtio/core";

const NUL = 0;

/**
 * The name in a PORT_NAME message: without the NUL that QEMU ends it with, and that the specification has not. Empty where there is
 * none that FreeBSD takes: not a byte, or one that is not ASCII.
 */
export function portNameOf(data: Uint8Array): string {
  const length = data.at(-1) === NUL ? data.length - 1 : data.length;
  const bytes = Array.from(data.subarray(0, length));
  return bytes.some((byte) => byte > 0x7e) ? "" : String.fromCharCode(...bytes);
}

/** Why no device node can have this name, as make_dev(9) says it; 0: it can. */
export function aliasError(name: string, taken: ReadonlySet<string>): number {
  const bad = Array.from(name).some(
    (char) => char <= " " || char === '"' || char === "\\" || char === "\x7f",
  );
  const parts = name.split("/");
  if (bad || parts.some((part) => part === "" || part === "." || part === ".."))
    return Errno.EINVAL;
  return taken.has(name) ? Errno.EEXIST : 0;
}
