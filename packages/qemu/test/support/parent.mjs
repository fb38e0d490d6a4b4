// A program that starts a machine from the sources, says which process it is, and does nothing more.
import { createViteServer } from "vitest/node";

const [entry] = process.argv.slice(2);
const conditions = ["@virtio/source", "import", "module", "node", "default"];
const server = await createViteServer({
  configFile: false,
  logLevel: "error",
  optimizeDeps: { noDiscovery: true },
  server: { middlewareMode: true, ws: false, hmr: false, watch: null },
  ssr: { noExternal: [/^@virtio\//], resolve: { conditions, externalConditions: conditions } },
});
const { qemu } = await server.ssrLoadModule(entry);
const machine = await qemu();
process.stdout.write(`${machine.pid}\n`);
