import { defineConfig } from "tsup";
import { library } from "../../tsup.config.base.js";

export default defineConfig(
  library({
    index: "src/index.ts",
    contract: "src/contract.ts",
    "node/index": "src/node/index.ts",
  }),
);
