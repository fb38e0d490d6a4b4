import { describe, expect, it } from "vitest";
import {
  describeFeatures,
  featureSet,
  featureSetFromWords,
  ReservedFeature,
  reservedFeatureNames,
  resolveTunables,
  SysctlTree,
  VirtioFault,
} from "../src/index.js";
import { BlockConfig, BlockFeature } from "../src/words/block.js";

const messageOf = (work: () => unknown): string => {
  try {
    work();
  } catch (error) {
    return error instanceof VirtioFault ? `${error.code}: ${error.message}` : String(error);
  }
  return "nothing";
};

describe("feature sets", () => {
  it("hold bits past 64, and drop words that end empty", () => {
    const set = featureSetFromWords<ReservedFeature>([0, 1, 0, 0]).with(ReservedFeature.SUSPEND);
    expect(set.words()).toEqual([0, 1 | (1 << 11)]);
    expect(set.without(ReservedFeature.SUSPEND, ReservedFeature.VERSION_1).words()).toEqual([0, 0]);
    expect(featureSetFromWords<ReservedFeature>([0, 0, 4]).words()).toEqual([0, 0, 4]);
    expect(
      set.intersect(featureSet<ReservedFeature>().with(ReservedFeature.VERSION_1)).words(),
    ).toEqual([0, 1]);
  });

  it("print as FreeBSD prints them, highest bit first, bit 30 left out", () => {
    expect(describeFeatures([0, 0], [])).toBe("0");
    const names = [...reservedFeatureNames, { bit: BlockFeature.FLUSH, name: "FlushCmd" }];
    expect(describeFeatures([0x7000_0200, 1], names)).toBe(
      "0x170000200 <Version1,RingEventIdx,RingIndirectDesc,FlushCmd>",
    );
    expect(describeFeatures([2], [])).toBe("0x2 <0x2>");
  });
});

describe("the block configuration", () => {
  it("has no fields that overlap or are not aligned", () => {
    const fields = Object.values(BlockConfig).sort(([a], [b]) => a - b);
    for (const [i, [offset, width]] of fields.entries()) {
      expect(offset % Math.min(width, 4)).toBe(0);
      expect(offset + width).toBeLessThanOrEqual(fields[i + 1]?.[0] ?? 96);
    }
  });
});

describe("tunables", () => {
  const specs = [{ name: "no_ident", default: 0, min: 0, max: 1, description: "" }];
  const resolve = (environment: [string, string][], options = {}) =>
    resolveTunables({
      prefix: "vtblk",
      specs,
      unit: 3,
      options,
      environment: new Map(environment),
    }).number("no_ident");

  it("resolve unit before global before option before default", () => {
    expect(resolve([])).toBe(0);
    expect(resolve([], { no_ident: 1 })).toBe(1);
    expect(resolve([["hw.vtblk.no_ident", "0"]], { no_ident: 1 })).toBe(0);
    expect(
      resolve([
        ["hw.vtblk.no_ident", "0"],
        ["hw.vtblk.3.no_ident", "1"],
      ]),
    ).toBe(1);
    expect(resolve([["hw.vtblk.2.no_ident", "1"]])).toBe(0);
  });

  it("refuse what is out of range or no number, naming it", () => {
    for (const value of ["2", "-1", "yes", "", "0.5"])
      expect(messageOf(() => resolve([["hw.vtblk.3.no_ident", value]]))).toBe(
        `INVALID: hw.vtblk.3.no_ident: '${value}' is not a whole number from 0 to 1`,
      );
  });
});

describe("the sysctl tree", () => {
  it("finds leaves by whole name and by node, and forgets a device", () => {
    const tree = new SysctlTree();
    const unit = tree.node("dev", "").node("vtblk", "block").node("0", "");
    unit.value("a", "first", () => 1);
    unit.node("vq0", "queue").value("size", "", () => 256);
    tree
      .node("dev", "")
      .node("vtblk", "block")
      .node("01", "")
      .value("a", "", () => 2);
    expect(tree.find("dev.vtblk.0").map(({ name }) => name)).toEqual([
      "dev.vtblk.0.a",
      "dev.vtblk.0.vq0.size",
    ]);
    expect(tree.find("dev.vtblk.0.a")[0]?.read()).toBe(1);
    expect(tree.description("dev.vtblk")).toBe("block");
    tree.remove("dev.vtblk.0");
    expect(tree.find().map(({ name }) => name)).toEqual(["dev.vtblk.01.a"]);
  });
});

describe("faults", () => {
  it("say who, what and where, and carry FreeBSD's errno", () => {
    const fault = new VirtioFault("DEVICE_MISBEHAVED", "used.id 300", {
      device: "vtbd0",
      clause: "virtio 1.4 §2.7.8",
    });
    expect([fault.message, fault.errno, fault.name, fault instanceof Error]).toEqual([
      "vtbd0: used.id 300 [virtio 1.4 §2.7.8]",
      "EIO",
      "VirtioFault",
      true,
    ]);
  });
});
