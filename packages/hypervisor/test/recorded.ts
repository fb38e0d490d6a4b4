// A memory disk of 1s that says what it was asked.
import { FaultBackend, MemoryBackend } from "../src/index.js";

/** `asked` has a line for each request: `write 512+1024`. */
export const recorded = (options: { readOnly?: boolean } = {}) => {
  const asked: string[] = [];
  const content = new Uint8Array(1 << 20).fill(1);
  const backend = new FaultBackend(
    new MemoryBackend(content, options),
    ({ operation, position, length }) => {
      asked.push(`${operation} ${position}+${length}`);
      return undefined;
    },
  );
  return { asked, content, backend };
};
