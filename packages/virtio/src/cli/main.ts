#!/usr/bin/env node
// The program `virtio`.
import { main } from "./virtio.js";

const status = await main(process.argv.slice(2), {
  stdin: process.stdin,
  stdout: process.stdout,
  stderr: process.stderr,
  // npm and npx change the folder, and leave the one in which the user typed here.
  cwd: process.env["INIT_CWD"] ?? process.cwd(),
  signals: process,
  exit: (code) => process.exit(code),
});
// Standard input may be open still, and must not keep the process.
process.exit(status);
