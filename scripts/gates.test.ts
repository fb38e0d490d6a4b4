// Each gate that holds the boundaries is seen to accept a tidy workspace and to refuse each kind of
// trespass, with the very settings of this workspace, in a small copy of its shape.
import { spawnSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { root } from "./sources.mjs";

const settings = [
  ".dependency-cruiser.mjs",
  ".gitignore",
  "biome.json",
  "tsconfig.base.json",
  "tsconfig.portable.json",
];

/** What a package of the copy may import, as its package.json declares it. */
const packages: Record<string, string[]> = {
  core: ["ring"],
  ring: ["core"],
  vtblk: ["core"],
  hypervisor: ["core", "vtblk"],
  virtio: ["core", "vtblk", "qemu"],
  qemu: ["core"],
};

const tidy: Record<string, string> = {
  "packages/core/src/index.ts": "export const one: number = 1;\n",
  "packages/core/src/disk.ts":
    'import type { Driver } from "./driver.js";\n\nexport type Disk = { readonly driver: Driver };\n',
  "packages/core/src/driver.ts":
    'import type { Disk } from "./disk.js";\n\nexport type Driver = { readonly disk: Disk };\n',
  "packages/ring/src/index.ts": 'export { one } from "@virtio/core";\n',
  "packages/vtblk/src/index.ts": 'export { one } from "@virtio/core";\n',
  "packages/hypervisor/src/index.ts": 'export { one } from "@virtio/core";\n',
  "packages/hypervisor/src/host-clock.ts":
    "export const later = (work: () => void): number => setTimeout(work, 0);\n",
  "packages/qemu/src/index.ts":
    'import { setTimeout } from "node:timers";\n\nexport const wait: typeof setTimeout = setTimeout;\n',
  "packages/virtio/src/index.ts":
    'export const load = (): Promise<unknown> => import("@virtio/vtblk");\n',
  "packages/virtio/src/node/index.ts":
    'export const load = (): Promise<unknown> => import("@virtio/qemu");\n',
};

const trespasses: Record<string, string> = {
  "packages/core/src/buffer.ts": "export const bytes: unknown = Buffer.alloc(1);\n",
  "packages/core/src/process.ts": "export const pid: unknown = process.pid;\n",
  "packages/core/src/files.ts": 'export { readFileSync } from "node:fs";\n',
  "packages/core/src/timer.ts":
    "export const later = (work: () => void): number => setTimeout(work, 0);\n",
  "packages/hypervisor/src/clock.ts": "export const now = (): number => performance.now();\n",
  "packages/virtio/src/kernel.ts": 'export const say = (): void => console.log("hello");\n',
  "packages/core/src/upwards.ts": 'export { wrap } from "@virtio/ring/wrap";\n',
  "packages/ring/src/egg.ts":
    'import { hen } from "./hen.js";\n\nexport const egg = (): unknown => hen;\n',
  "packages/ring/src/hen.ts":
    'import { egg } from "./egg.js";\n\nexport const hen = (): unknown => egg;\n',
  "packages/ring/src/wrap.ts": "export const wrap: number = 1;\n",
  "packages/ring/src/files.ts": 'export { readFileSync } from "node:fs";\n',
  "packages/hypervisor/src/driver.ts": 'export { one } from "@virtio/vtblk";\n',
  "packages/hypervisor/src/undeclared.ts": 'export { wrap } from "@virtio/ring/wrap";\n',
  "packages/hypervisor/src/node/file.ts": "export const file: number = 1;\n",
  "packages/hypervisor/src/door.ts": 'export { file } from "./node/file.js";\n',
  "packages/vtblk/src/path.ts": 'export { one } from "../../core/src/index.js";\n',
  "packages/virtio/src/static.ts": 'export { one } from "@virtio/vtblk";\n',
  "packages/virtio/src/machine.ts":
    'export const load = (): Promise<unknown> => import("@virtio/qemu");\n',
};

interface Outcome {
  readonly status: number | null;
  readonly output: string;
}

/** A small workspace that holds these files. */
class Copy {
  readonly folder: string = mkdtempSync(join(tmpdir(), "gates-"));

  constructor(files: Record<string, string>) {
    for (const name of settings) cpSync(join(root, name), join(this.folder, name));
    symlinkSync(join(root, "node_modules"), join(this.folder, "node_modules"));
    for (const [name, imports] of Object.entries(packages)) this.#package(name, imports);
    for (const [path, text] of Object.entries(files)) this.#write(path, text);
  }

  #write(path: string, text: string): void {
    mkdirSync(dirname(join(this.folder, path)), { recursive: true });
    writeFileSync(join(this.folder, path), text);
  }

  #package(name: string, imports: readonly string[]): void {
    const folder = `packages/${name}`;
    const manifest = {
      name: `@virtio/${name}`,
      version: "0.0.0",
      type: "module",
      exports: {
        ".": { "@virtio/source": "./src/index.ts" },
        "./wrap": { "@virtio/source": "./src/wrap.ts" },
      },
      dependencies: Object.fromEntries(imports.map((to) => [`@virtio/${to}`, "workspace:^"])),
    };
    this.#write(`${folder}/package.json`, `${JSON.stringify(manifest, null, 2)}\n`);
    this.#write(
      `${folder}/tsconfig.json`,
      '{ "extends": "../../tsconfig.portable.json", "compilerOptions": { "noEmit": true }, "include": ["src"] }\n',
    );
    const scope = join(this.folder, folder, "node_modules/@virtio");
    mkdirSync(scope, { recursive: true });
    for (const to of imports) symlinkSync(`../../../${to}`, join(scope, to));
  }

  run(command: string, ...args: string[]): Outcome {
    const { status, stdout, stderr } = spawnSync(join(root, "node_modules/.bin", command), args, {
      cwd: this.folder,
      encoding: "utf8",
      timeout: 30_000,
      env: { ...process.env, NO_COLOR: "1", FORCE_COLOR: "0" },
    });
    return { status, output: stdout + stderr };
  }

  compile(): Outcome {
    return this.run("tsc", "--pretty", "false", "-p", "packages/core");
  }

  lint(): Outcome {
    return this.run("biome", "lint", "--max-diagnostics=none", "--colors=off", "packages");
  }

  layers(): Outcome {
    return this.run("depcruise", "packages", "--config", ".dependency-cruiser.mjs");
  }

  [Symbol.dispose](): void {
    rmSync(this.folder, { recursive: true });
  }
}

describe("the gates", () => {
  let clean: Copy;
  let dirty: Copy;
  beforeAll(() => {
    clean = new Copy(tidy);
    dirty = new Copy({ ...tidy, ...trespasses });
  });
  afterAll(() => {
    clean[Symbol.dispose]();
    dirty[Symbol.dispose]();
  });

  describe("compiler", () => {
    it("accepts portable sources", () => {
      expect(clean.compile()).toEqual({ status: 0, output: "" });
    });

    it("refuses what only Node has in a portable package", () => {
      const { status, output } = dirty.compile();
      expect(status).not.toBe(0);
      expect(output).toMatch(/core\/src\/buffer\.ts.*'Buffer'/);
      expect(output).toMatch(/core\/src\/process\.ts.*'process'/);
      expect(output).toMatch(/core\/src\/files\.ts.*'node:fs'/);
      expect(output).not.toContain("core/src/index.ts");
    });
  });

  describe("lint", () => {
    it("accepts timers in the Node packages and in the host clock of the embedded machine", () => {
      expect(clean.lint()).toMatchObject({ status: 0 });
    });

    it("refuses timers, clocks and the console in portable sources", () => {
      const { status, output } = dirty.lint();
      expect(status).not.toBe(0);
      expect(output).toMatch(/core\/src\/timer\.ts:1:\d+ lint\/style\/noRestrictedGlobals/);
      expect(output).toMatch(/hypervisor\/src\/clock\.ts:1:\d+ lint\/style\/noRestrictedGlobals/);
      expect(output).toMatch(/virtio\/src\/kernel\.ts:1:\d+ lint\/style\/noRestrictedGlobals/);
      expect(output).not.toContain("host-clock.ts");
      expect(output).not.toContain("packages/qemu");
    });
  });

  describe("layers", () => {
    it("accept the table's imports", () => {
      expect(clean.layers()).toMatchObject({ status: 0 });
    });

    it("refuse every other import", () => {
      const { status, output } = dirty.layers();
      const refused = [...output.matchAll(/^ {2}error (\S+): packages\/(\S+)/gm)].map(
        ([, rule, from]) => `${rule} ${from}`,
      );
      expect(status).not.toBe(0);
      expect(refused.sort()).toEqual([
        "declared hypervisor/src/undeclared.ts",
        "drivers-on-demand virtio/src/static.ts",
        "front-door vtblk/src/path.ts",
        "layers-core core/src/upwards.ts",
        "layers-hypervisor hypervisor/src/driver.ts",
        "no-cycles ring/src/egg.ts",
        "optional-under-node virtio/src/machine.ts",
        "portable core/src/files.ts",
        "portable ring/src/files.ts",
        "portable-no-node-half hypervisor/src/door.ts",
      ]);
    });
  });
});
