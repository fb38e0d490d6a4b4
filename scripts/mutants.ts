// Named mutants of the drivers: each breaks one clause, and the tests that claim the clause must notice. `VIRTIO_MUTANT=NAME vitest …`
// runs tests against one; packages/e2e/test/mutants.test.ts runs them all.

/** One change of one source file. */
export interface Mutant {
  /** Clause it breaks. Its tests are those whose title holds `[CLAUSE]`. */
  readonly clause: string;
  /** What the driver does wrong. */
  readonly name: string;
  /** Project whose tests claim the clause. */
  readonly project: string;
  readonly file: string;
  /** Text that stands in the file once. */
  readonly find: string;
  readonly replace: string;
}

const pci = "@virtio/pci-transport";
const node = "packages/pci-transport/src/node.ts";
const capabilities = "packages/pci-transport/src/capabilities.ts";
const config = "packages/pci-transport/src/config-space.ts";
const device = "packages/pci-transport/src/device.ts";
const features = "packages/pci-transport/src/features.ts";
const interrupts = "packages/pci-transport/src/interrupts.ts";
const attach = "packages/pci-transport/src/attach.ts";
const block = "@virtio/vtblk";
const vtblk = "packages/vtblk/src/vtblk.ts";

/** Every mutant. */
export const mutants: readonly Mutant[] = [
  {
    clause: "PCI-DISC-1",
    name: "binds to transitional ids only",
    project: pci,
    file: node,
    find: "id > DEVICE_ID_LAST",
    replace: "id >= MODERN_DEVICE_ID_BASE",
  },
  {
    clause: "PCI-DISC-2",
    name: "binds to modern ids only",
    project: pci,
    file: node,
    find: "id < TRANSITIONAL_DEVICE_ID_BASE",
    replace: "id < MODERN_DEVICE_ID_BASE",
  },
  {
    clause: "PCI-DISC-3",
    name: "binds to revision 1 only",
    project: pci,
    file: node,
    find: "if (id < TRANSITIONAL_DEVICE_ID_BASE",
    replace:
      "if (field(bytes, PciRegister.REVISION_ID, 1) !== 1 || id < TRANSITIONAL_DEVICE_ID_BASE",
  },
  {
    clause: "PCI-CAP-1",
    name: "stops at a capability of a reserved type",
    project: pci,
    file: capabilities,
    find: "if (shortest === undefined || length",
    replace: "if (shortest === undefined) break;\n    if (length",
  },
  {
    clause: "PCI-CAP-2",
    name: "takes the first structure of a type, usable or not",
    project: pci,
    file: node,
    find: "(cap) => cap.type === type && defect(cap, this.#header) === null",
    replace: "(cap) => cap.type === type",
  },
  {
    clause: "PCI-CAP-3",
    name: "wants capabilities of exactly their defined length",
    project: pci,
    file: capabilities,
    find: "length < shortest",
    replace: "length !== shortest",
  },
  {
    clause: "PCI-CAP-4",
    name: "stops at a capability with a reserved BAR",
    project: pci,
    file: capabilities,
    find: "const bar = field(bytes, at + 4, 1);",
    replace: "const bar = field(bytes, at + 4, 1); if (bar >= RESERVED_BAR) break;",
  },
  {
    clause: "PCI-CAP-6",
    name: "wants the whole length inside the BAR",
    project: pci,
    file: node,
    find: "cap.offset + length > bar.length",
    replace: "cap.offset + cap.length > bar.length",
  },
  {
    clause: "PCI-MSIX-1",
    name: "takes as many vectors as it wants",
    project: pci,
    file: interrupts,
    find: "msix.vectors < 1 + groups.length",
    replace: "msix.vectors < 0",
  },
  {
    clause: "PCI-CFGCHG-1",
    name: "serves one cause of an interrupt only",
    project: pci,
    file: device,
    find: "if ((isr & IsrStatus.QUEUE) !== 0)",
    replace: "if (isr === IsrStatus.QUEUE)",
  },
  {
    clause: "CONFIG-1",
    name: "takes configuration of two generations",
    project: pci,
    file: config,
    find: "return first === last ? read : null;",
    replace: "return read;",
  },
  {
    clause: "CONFIG-2",
    name: "does not compare generations",
    project: pci,
    file: config,
    find: "return first === last ? read : null;",
    replace: "return read;",
  },
  {
    clause: "FEAT-4",
    name: "fails on unknown features",
    project: pci,
    file: device,
    find: "    const [status] = await Promise.all([this.#status(), this.#registers.writeFeatures",
    replace:
      '    if ((this.#offered[3] ?? 0) !== 0) throw new VirtioFault("NEGOTIATION", "unknown features");\n    const [status] = await Promise.all([this.#status(), this.#registers.writeFeatures',
  },
  {
    clause: "FEAT-5",
    name: "accepts whatever is offered",
    project: pci,
    file: features,
    find: "return (word & mine & ~(unreachable[i] ?? 0)) >>> 0;",
    replace: "return word;",
  },
  {
    clause: "FEAT-2",
    name: "accepts features without what they need",
    project: pci,
    file: features,
    find: "      dropped = true;\n",
    replace: "",
  },
  {
    clause: "FEAT-3",
    name: "accepts whatever of the driver's is offered",
    project: pci,
    file: features,
    find: "(word & mine & ~(unreachable[i] ?? 0)) >>> 0",
    replace: "(word & (wanted[i] ?? 0)) >>> 0",
  },
  {
    clause: "FEAT-7",
    name: "gives up without setting FAILED",
    project: pci,
    file: device,
    find: "await this.#addStatus(DeviceStatus.FAILED).catch(() => {});",
    replace: "{}",
  },
  {
    clause: "FEAT-8",
    name: "fails because an unknown feature is offered",
    project: pci,
    file: device,
    find: "    const [status] = await Promise.all([this.#status(), this.#registers.writeFeatures",
    replace:
      '    if ((this.#offered[3] ?? 0) !== 0) throw new VirtioFault("NEGOTIATION", "unknown features");\n    const [status] = await Promise.all([this.#status(), this.#registers.writeFeatures',
  },
  {
    clause: "INIT-11",
    name: "does not set FAILED after a step that failed",
    project: pci,
    file: device,
    find: "await this.#addStatus(DeviceStatus.FAILED).catch(() => {});",
    replace: "{}",
  },
  {
    clause: "INIT-12",
    name: "goes on after a step that failed",
    project: pci,
    file: attach,
    find: "await device?.abandon()",
    replace: "await device?.start()",
  },
  {
    clause: "STATUS-4",
    name: "waits for a device that needs a reset",
    project: pci,
    file: device,
    find: "for (const { ring } of this.#queues) ring.fail(fault);",
    replace: "",
  },
  {
    clause: "RESFEAT-3",
    name: "does not accept ACCESS_PLATFORM",
    project: pci,
    file: features,
    find: "  ReservedFeature.ACCESS_PLATFORM,\n",
    replace: "",
  },
  {
    clause: "RESFEAT-6",
    name: "does not accept RING_PACKED",
    project: pci,
    file: features,
    find: "  ReservedFeature.RING_PACKED,\n",
    replace: "",
  },
  {
    clause: "RESFEAT-7",
    name: "does not accept ORDER_PLATFORM",
    project: pci,
    file: features,
    find: "  ReservedFeature.ORDER_PLATFORM,\n",
    replace: "",
  },
  {
    clause: "RESFEAT-13",
    name: "does not accept NOTIF_CONFIG_DATA",
    project: pci,
    file: features,
    find: "  ReservedFeature.NOTIF_CONFIG_DATA,\n",
    replace: "",
  },
  {
    clause: "RESFEAT-10",
    name: "accepts SR_IOV",
    project: pci,
    file: features,
    find: "  ReservedFeature.RING_PACKED,\n",
    replace: "  ReservedFeature.RING_PACKED,\n  ReservedFeature.SR_IOV,\n",
  },
  {
    clause: "RESFEAT-8",
    name: "accepts ORDER_PLATFORM and orders nothing",
    project: pci,
    file: "packages/pci-transport/src/rings.ts",
    find: " || features.has(ReservedFeature.ORDER_PLATFORM)",
    replace: "",
  },
  {
    clause: "CONFIG-4",
    name: "wants no more configuration than a page",
    project: pci,
    file: config,
    find: "    if (offset + width > this.length)",
    replace: "    if (offset + width > this.length || this.length > 4096)",
  },
  {
    clause: "BLK-OP-3",
    name: "does not accept RO",
    project: block,
    file: "packages/vtblk/src/features.ts",
    find: "  BlockFeature.RO,\n  BlockFeature.BLK_SIZE",
    replace: "  BlockFeature.BLK_SIZE",
  },
  {
    clause: "BLK-INIT-1",
    name: "negotiates FLUSH and sends none",
    project: block,
    file: vtblk,
    find: "!this.#canFlush && this.#fault === null",
    replace: "this.#fault === null",
  },
  {
    clause: "BLK-INIT-3",
    name: "takes a device with FLUSH for writethrough",
    project: block,
    file: vtblk,
    find: "!this.#canFlush && this.#fault === null",
    replace: "this.#fault === null",
  },
  {
    clause: "BLK-INIT-2",
    name: "sends flushes to a device without FLUSH",
    project: block,
    file: vtblk,
    find: "!this.#canFlush && this.#fault === null",
    replace: "false",
  },
  {
    clause: "BLK-OP-13",
    name: "takes what was written for stable once the cache mode is switched",
    project: block,
    file: vtblk,
    find: "await driver.#reset;",
    replace: "await driver.#reset;\n      driver.#canFlush = false;",
  },
  {
    clause: "BLK-OP-15",
    name: "takes discarded sectors for zeroes",
    project: block,
    file: vtblk,
    find: "  strategy(bio: Bio): boolean {",
    replace:
      "  strategy(bio: Bio): boolean {\n    if (bio.command === BioCommand.DISCARD) this.discarded = bio.position;\n    if (bio.command === BioCommand.READ && bio.position === this.discarded) {\n      bio.data.fill(0);\n      this.#events.done(bio, null);\n      return true;\n    }",
  },
  {
    clause: "BLK-OP-16",
    name: "takes a discard or zeroes that failed in part for done",
    project: block,
    file: vtblk,
    find: "    if (fault === null) this.#resets = 0;",
    replace:
      "    if (type === BlockRequestType.DISCARD || type === BlockRequestType.WRITE_ZEROES) fault = null;\n    if (fault === null) this.#resets = 0;",
  },
  {
    clause: "BLK-INIT-7",
    name: "accepts no DISCARD of any zoned disk",
    project: block,
    file: "packages/vtblk/src/features.ts",
    find: "    if (!zoned) {\n      refused.push(BlockFeature.ZONED);",
    replace:
      "    refused.push(BlockFeature.DISCARD);\n    if (!zoned) {\n      refused.push(BlockFeature.ZONED);",
  },
  {
    clause: "BLK-INIT-9",
    name: "refuses host-aware disks, too, when zones are not to be driven",
    project: block,
    file: "packages/vtblk/src/features.ts",
    find: "if (model === BlockZonedModel.HM) {",
    replace: "if (model !== BlockZonedModel.NONE) {",
  },
  {
    clause: "BLK-INIT-10",
    name: "looks at the zones that are not to be driven",
    project: block,
    file: "packages/vtblk/src/features.ts",
    find: "    if (!zoned) {\n      refused.push(BlockFeature.ZONED);",
    replace: "    if (false) {\n      refused.push(BlockFeature.ZONED);",
  },
  {
    clause: "BLK-OP-25",
    name: "does not read where an append went",
    project: block,
    file: "packages/vtblk/src/request-queue.ts",
    find: "    bio.position += at;\n",
    replace: "",
  },
  {
    clause: "BLK-CFG-LEGACY-1",
    name: "reads legacy configuration in the other byte order",
    project: block,
    file: config,
    find: "return this.#registers.read(this.#base() + offset, width);",
    replace:
      "return this.#registers.read(this.#base() + offset, width).then((value) => width !== 4 ? value : (((value & 0xff) << 24) | ((value & 0xff00) << 8) | ((value >>> 8) & 0xff00) | (value >>> 24)) >>> 0);",
  },
  {
    clause: "BLK-OP-LEGACY-2",
    name: "believes the used length of a legacy device",
    project: block,
    file: "packages/vtblk/src/request-queue.ts",
    find: "this.#options.legacy || ",
    replace: "",
  },
  {
    clause: "CLEANUP-2",
    name: "takes its buffers back before the device is reset",
    project: block,
    file: vtblk,
    find: "await this.#device.release();\n      this.#free();",
    replace: "this.#free();\n      await this.#device.release();",
  },
];

/** A vite plugin that makes one mutant. */
export function mutate(name: string): {
  name: string;
  enforce: "pre";
  transform(code: string, id: string): string | null;
} {
  const mutant = mutants.find((each) => `${each.clause}: ${each.name}` === name);
  if (mutant === undefined) throw new Error(`no mutant '${name}'`);
  return {
    name: "mutant",
    enforce: "pre",
    transform(code, id) {
      if (!id.endsWith(mutant.file)) return null;
      if (code.split(mutant.find).length !== 2)
        throw new Error(`mutant '${name}': its text does not stand once in ${mutant.file}`);
      return code.replace(mutant.find, () => mutant.replace);
    },
  };
}
