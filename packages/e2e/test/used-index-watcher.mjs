// A worker thread that sees when a device writes used entries: it maps the machine's memory by its file descriptor, looks at the
// used index of every queue about two thousand times a second, and notes for each entry the last moment at which it was not
// there yet. It shares nothing with the driver but the memory.
import { hrtime } from "node:process";
import { parentPort, workerData } from "node:worker_threads";
import { SharedMemory } from "@virtio/shm";

const { fd, length, rings, times, control } = workerData;
const memory = SharedMemory.map(fd, length);
const indices = rings.map((address) => new Uint16Array(memory.buffer, address + 2, 1));
const seen = indices.map((index) => Atomics.load(index, 0));
const now = () => Number(hrtime.bigint() / 1000n) / 1000;

function look() {
  for (const [i, index] of indices.entries()) {
    const used = Atomics.load(index, 0);
    while (seen[i] !== used) {
      times[i * 65536 + seen[i]] = before;
      seen[i] = (seen[i] + 1) & 0xffff;
    }
  }
}

let before = now();
parentPort.postMessage("watching");
while (Atomics.load(control, 0) === 0) {
  look();
  before = now();
  Atomics.wait(control, 0, 0, 0.5);
}
look();
memory.close();
