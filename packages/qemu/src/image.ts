// Image files and sockets, looked at before QEMU is: its own words come late and name no device.
import { constants } from "node:fs";
import { access, realpath, stat } from "node:fs/promises";
import { resolve } from "node:path";
import { VirtioFault } from "@virtio/core";

/** An image that can be opened. */
export interface Image {
  /** Absolute, without symbolic links. */
  readonly path: string;
  /** QEMU's protocol driver for it. */
  readonly driver: "file" | "host_device";
}

const codeOf = (error: unknown): string =>
  typeof error === "object" && error !== null && "code" in error ? String(error.code) : "unknown";

/**
 * Finds the file of a device.
 * @param device how messages call it: `blk,file=disk.img`
 * @throws VirtioFault NOT_FOUND, INVALID (no file or block device, or not readable), READ_ONLY (not writable, and not asked for so)
 */
export async function findImage(
  file: string,
  options: { readonly device: string; readonly cwd: string; readonly readonly: boolean },
): Promise<Image> {
  const { device, cwd, readonly } = options;
  const path = resolve(cwd, file);
  try {
    const found = await stat(path);
    if (!found.isFile() && !found.isBlockDevice())
      throw new VirtioFault(
        "INVALID",
        `${device}: is a ${found.isDirectory() ? "directory" : "special file"}, not an image`,
      );
    await access(path, constants.R_OK);
    if (!readonly) await access(path, constants.W_OK).catch((cause) => notWritable(device, cause));
    return { path: await realpath(path), driver: found.isFile() ? "file" : "host_device" };
  } catch (cause) {
    if (cause instanceof VirtioFault) throw cause;
    const code = codeOf(cause);
    if (code === "ENOENT" || code === "ENOTDIR")
      throw new VirtioFault("NOT_FOUND", `${device}: no such file`, { cause });
    throw new VirtioFault("INVALID", `${device}: cannot be read (${code})`, { cause });
  }
}

/**
 * Looks whether the socket of a network device is there: QEMU would start without it.
 * @param device how messages call it: `net,backend=stream:wire.sock`
 * @throws VirtioFault NOT_FOUND, INVALID (not a socket)
 */
export async function findSocket(
  file: string,
  { device, cwd }: { readonly device: string; readonly cwd: string },
): Promise<void> {
  const found = await stat(resolve(cwd, file)).catch((cause: unknown) => {
    throw new VirtioFault("NOT_FOUND", `${device}: no such socket`, { cause });
  });
  if (!found.isSocket()) throw new VirtioFault("INVALID", `${device}: is not a socket`);
}

function notWritable(device: string, cause: unknown): never {
  throw new VirtioFault(
    "READ_ONLY",
    `${device}: is not writable (${codeOf(cause)}): allow writing, or use readonly=on`,
    { cause },
  );
}
