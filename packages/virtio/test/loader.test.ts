import { VirtioFault } from "@virtio/core";
import { describe, expect, it } from "vitest";
import {
  type KernelImage,
  type LoaderOptions,
  load,
  parseKernelConf,
  parseLoaderConf,
} from "../src/index.js";
import { fakeModules } from "./fakes.js";

const EMPTY = parseKernelConf("", "EMPTY");

const image = (conf: string, options: LoaderOptions = {}): Promise<KernelImage> =>
  load({ modules: fakeModules(), settings: parseLoaderConf(conf), ...options });

const linked = ({ linker }: KernelImage): string[] =>
  linker.files.map(({ name, modules }) => `${name}: ${modules.map((m) => m.name).join(" ")}`);

describe("the loader", () => {
  it("compiles everything into GENERIC", async () => {
    expect(linked(await image(""))).toEqual(["kernel: virtio virtio_pci virtio_blk"]);
  });

  it("compiles in what a configuration names, and what that needs", async () => {
    const kernelConf = parseKernelConf("device pci\ndevice virtio_blk\n");
    expect(linked(await image("", { kernelConf }))).toEqual(["kernel: virtio virtio_blk"]);
  });

  it("leaves out of GENERIC what nodevice names", async () => {
    const kernelConf = parseKernelConf("include GENERIC\nnodevice virtio_blk\n");
    expect(linked(await image("", { kernelConf }))).toEqual(["kernel: virtio virtio_pci"]);
  });

  it("refuses a device that is not there, with its place", async () => {
    const kernelConf = parseKernelConf("\ndevice vtnot", "K");
    await expect(image("", { kernelConf })).rejects.toThrow(
      "K:2:8: unknown device 'vtnot' (there is: virtio, virtio_pci, virtio_blk)",
    );
  });

  it("loads modules in the order of the file, by file or module name, in any case of yes", async () => {
    const conf = 'virtio_pci_load="yes"\nvirtio_blk_load="YES"\nvirtio_load="NO"\n';
    expect(linked(await image(conf, { kernelConf: EMPTY }))).toEqual([
      "kernel: ",
      "virtio: virtio",
      "virtio_pci: virtio_pci",
      "if_virtio_blk: virtio_blk",
    ]);
  });

  it("lets the last setting of a name win", async () => {
    const conf = 'virtio_pci_load="YES"\nvirtio_pci_load="NO"\n';
    expect(linked(await image(conf, { kernelConf: EMPTY }))).toEqual(["kernel: "]);
  });

  it("says at boot that a module is in the kernel already, and goes on", async () => {
    expect((await image('virtio_load="YES"')).messages).toEqual(["module virtio already present!"]);
  });

  it("keeps every assignment in the kernel environment", async () => {
    const { environment } = await image('a="1"\nvirtio_load="YES"');
    expect(environment.get("a")).toBe("1");
    expect(environment.get("virtio_load")).toBe("YES");
  });

  it.each([
    [
      '\nfoo_load="YES"',
      "loader.conf:2: can't load foo: No such file or directory (there is: virtio, virtio_pci, if_virtio_blk)",
    ],
    [
      "hw.vtblk.no_idnt=1",
      "loader.conf:1: hw.vtblk.no_idnt: vtblk has no such tunable (it has: no_ident, writecache_mode)",
    ],
    ["hw.vtblk.3.x=1", "loader.conf:1: hw.vtblk.3.x: vtblk has no such tunable"],
    [
      "\n\nhw.vtblk.0.writecache_mode=7",
      "loader.conf:3: hw.vtblk.0.writecache_mode: '7' is not a whole number from -1 to 1",
    ],
    ['hw.vtblk.no_ident=""', "loader.conf:1: hw.vtblk.no_ident: '' is not a whole number"],
    [
      "hw.virtio.pci.disable_msi=1",
      "loader.conf:1: hw.virtio.pci.disable_msi: virtio_pci has no such tunable (it has: disable_msix)",
    ],
  ])("refuses %j in one line", async (conf, message) => {
    await expect(image(conf)).rejects.toThrow(message);
  });

  it("does not look at the tunables of a module that is not linked", async () => {
    await expect(image("hw.vtblk.no_idnt=1", { kernelConf: EMPTY })).resolves.toMatchObject({
      messages: [],
    });
  });

  describe("with a module of someone else", () => {
    const mine = {
      file: "foo",
      name: "foo",
      version: 1,
      depends: ["virtio"],
      drivers: [],
      busDrivers: [],
    };
    const conf = 'foo_load="YES"\nfoo_name="some-package"';

    it("imports the package that _name gives", async () => {
      const asked: string[] = [];
      const importPackage = async (name: string): Promise<{ kernelModule: typeof mine }> => {
        asked.push(name);
        return { kernelModule: mine };
      };
      expect(linked(await image(conf, { importPackage, kernelConf: EMPTY }))).toEqual([
        "kernel: ",
        "virtio: virtio",
        "foo: foo",
      ]);
      expect(asked).toEqual(["some-package"]);
    });

    it("says which line named a package that is not there", async () => {
      const importPackage = async (name: string): Promise<never> => {
        throw new VirtioFault("NOT_FOUND", `no package '${name}'`);
      };
      await expect(image(conf, { importPackage })).rejects.toThrow(
        "loader.conf:1: can't load foo: no package 'some-package'",
      );
    });

    it("refuses where packages cannot be imported", async () => {
      await expect(image(conf)).rejects.toThrow(
        "loader.conf:1: can't load foo: the package 'some-package' can be imported in Node only",
      );
    });

    it("refuses modules that need each other, or one that is not there", async () => {
      const importPackage = async (): Promise<{ kernelModule: typeof mine }> => ({
        kernelModule: { ...mine, depends: ["bar"] },
      });
      await expect(image(conf, { importPackage })).rejects.toThrow(
        "loader.conf:1: can't load foo: foo needs the module 'bar', and there is none",
      );
      const modules = {
        ...fakeModules(),
        bar: async () => ({
          kernelModule: { ...mine, file: "bar", name: "bar", depends: ["foo"] },
        }),
      };
      await expect(image(conf, { importPackage, modules, kernelConf: EMPTY })).rejects.toThrow(
        "modules need each other: foo -> bar -> foo",
      );
    });
  });
});
