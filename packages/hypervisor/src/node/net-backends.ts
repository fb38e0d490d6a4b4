import { createWriteStream } from "node:fs";
import { readFile } from "node:fs/promises";
import { resolve } from "node:path";
import { type NetBackendName, VirtioFault } from "@virtio/core";
import { readPcap } from "@virtio/packets";
import type { NetBackend } from "../net-backend.js";
import { PcapBackend } from "../net-backends/pcap.js";
import { StreamBackend } from "./stream-backend.js";
import { TapBackend } from "./tap-backend.js";

/**
 * Opens what a network device is wired to outside of this program: what `embedded({ openNet })` asks for.
 *
 * - `pcap:FILE` plays the frames of FILE, and records what the device sends into `FILE.out.pcapng`
 * - `stream:SOCKET` connects to a UNIX socket
 * - `tap:IF` an interface of this computer
 *
 * @param cwd - folder that relative paths are relative to
 * @throws VirtioFault NOT_FOUND, INVALID (not a capture, a tap in use, a backend that is none of these), IO, UNSUPPORTED
 */
export async function openNetBackend(backend: NetBackendName, cwd: string): Promise<NetBackend> {
  const name = `net,backend=${backend}`;
  const path = resolve(cwd, backend.slice(backend.indexOf(":") + 1));
  if (backend.startsWith("stream:")) return StreamBackend.connect(path, name);
  if (backend.startsWith("pcap:")) return openPcap(path, name);
  if (backend.startsWith("tap:")) return TapBackend.open(backend.slice("tap:".length), name);
  throw new VirtioFault("INVALID", `${name}: is not one of pcap:FILE, stream:SOCKET, tap:IF`);
}

async function openPcap(path: string, name: string): Promise<NetBackend> {
  const file = await readFile(path).catch((cause: NodeJS.ErrnoException) => {
    const missing = cause.code === "ENOENT";
    const why = missing ? "no such file" : `cannot be read (${cause.code})`;
    throw new VirtioFault(missing ? "NOT_FOUND" : "IO", `${name}: ${why}`, { cause });
  });
  const frames = readPcap(file);
  const out = createWriteStream(`${path}.out.pcapng`);
  // A full disk ends the record, not the device.
  out.on("error", () => {});
  const backend = new PcapBackend({ frames, record: (block) => void out.write(block) });
  const close = backend.close.bind(backend);
  backend.close = async () => {
    await close();
    await new Promise<void>((done) => out.end(done));
  };
  return backend;
}
