import { defineConfig } from "tsup";
import { library } from "../../tsup.config.base.js";

export default defineConfig(
  library({
    index: "src/index.ts",
    "words/block": "src/words/block.ts",
    "words/net": "src/words/net.ts",
    "words/console": "src/words/console.ts",
    "words/balloon": "src/words/balloon.ts",
    "words/scsi": "src/words/scsi.ts",
    "words/ring": "src/words/ring.ts",
    "words/pci": "src/words/pci.ts",
  }),
);
