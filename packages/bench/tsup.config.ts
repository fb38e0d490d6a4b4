import { defineConfig } from "tsup";
import { library } from "../../tsup.config.base.js";

export default defineConfig(
  library({ main: "src/main.ts", load: "src/load.ts", "device-thread": "src/device-thread.ts" }),
);
