// Named mutants of the drivers: each breaks a clause or several, and the tests that claim each of them must notice.
// `VIRTIO_MUTANT=NAME vitest …` runs tests against one; packages/e2e/test/mutants.test.ts runs them all.

/** One change of one source file. */
export interface Mutant {
  /** Clauses it breaks. The tests of each are those whose title holds `[CLAUSE]`. */
  readonly clauses: readonly string[];
  /** What the driver does wrong. */
  readonly name: string;
  /** Project whose tests claim the clauses. */
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
const network = "@virtio/vtnet";
const balloon = "@virtio/balloon";
const receiveQueue = "packages/vtnet/src/receive-queue.ts";
const link = "packages/vtnet/src/link.ts";
const consoles = "@virtio/console";

/** Every mutant. */
export const mutants: readonly Mutant[] = [
  {
    clauses: ["PCI-DISC-1"],
    name: "binds to transitional ids only",
    project: pci,
    file: node,
    find: "id > DEVICE_ID_LAST",
    replace: "id >= MODERN_DEVICE_ID_BASE",
  },
  {
    clauses: ["PCI-DISC-2"],
    name: "binds to modern ids only",
    project: pci,
    file: node,
    find: "id < TRANSITIONAL_DEVICE_ID_BASE",
    replace: "id < MODERN_DEVICE_ID_BASE",
  },
  {
    clauses: ["PCI-DISC-3"],
    name: "binds to revision 1 only",
    project: pci,
    file: node,
    find: "if (id < TRANSITIONAL_DEVICE_ID_BASE",
    replace:
      "if (field(bytes, PciRegister.REVISION_ID, 1) !== 1 || id < TRANSITIONAL_DEVICE_ID_BASE",
  },
  {
    clauses: ["PCI-CAP-1"],
    name: "stops at a capability of a reserved type",
    project: pci,
    file: capabilities,
    find: "if (shortest === undefined || length",
    replace: "if (shortest === undefined) break;\n    if (length",
  },
  {
    clauses: ["PCI-CAP-2"],
    name: "takes the first structure of a type, usable or not",
    project: pci,
    file: node,
    find: "(cap) => cap.type === type && defect(cap, this.#header) === null",
    replace: "(cap) => cap.type === type",
  },
  {
    clauses: ["PCI-CAP-3"],
    name: "wants capabilities of exactly their defined length",
    project: pci,
    file: capabilities,
    find: "length < shortest",
    replace: "length !== shortest",
  },
  {
    clauses: ["PCI-CAP-4"],
    name: "stops at a capability with a reserved BAR",
    project: pci,
    file: capabilities,
    find: "const bar = field(bytes, at + 4, 1);",
    replace: "const bar = field(bytes, at + 4, 1); if (bar >= RESERVED_BAR) break;",
  },
  {
    clauses: ["PCI-CAP-6"],
    name: "wants the whole length inside the BAR",
    project: pci,
    file: node,
    find: "cap.offset + length > bar.length",
    replace: "cap.offset + cap.length > bar.length",
  },
  {
    clauses: ["PCI-MSIX-1"],
    name: "takes as many vectors as it wants",
    project: pci,
    file: interrupts,
    find: "msix.vectors < 1 + groups.length",
    replace: "msix.vectors < 0",
  },
  {
    clauses: ["PCI-CFGCHG-1"],
    name: "serves one cause of an interrupt only",
    project: pci,
    file: device,
    find: "if ((isr & IsrStatus.QUEUE) !== 0)",
    replace: "if (isr === IsrStatus.QUEUE)",
  },
  {
    clauses: ["CONFIG-1", "CONFIG-2"],
    name: "takes configuration of two generations",
    project: pci,
    file: config,
    find: "return first === last ? read : null;",
    replace: "return read;",
  },
  {
    clauses: ["FEAT-4", "FEAT-8"],
    name: "fails on unknown features",
    project: pci,
    file: device,
    find: "    const [status] = await Promise.all([this.#status(), this.#registers.writeFeatures",
    replace:
      '    if ((this.#offered[3] ?? 0) !== 0) throw new VirtioFault("NEGOTIATION", "unknown features");\n    const [status] = await Promise.all([this.#status(), this.#registers.writeFeatures',
  },
  {
    clauses: ["FEAT-5"],
    name: "accepts whatever is offered",
    project: pci,
    file: features,
    find: "return (word & mine & ~(unreachable[i] ?? 0)) >>> 0;",
    replace: "return word;",
  },
  {
    clauses: ["FEAT-2"],
    name: "accepts features without what they need",
    project: pci,
    file: features,
    find: "      dropped = true;\n",
    replace: "",
  },
  {
    clauses: ["FEAT-3"],
    name: "accepts whatever of the driver's is offered",
    project: pci,
    file: features,
    find: "(word & mine & ~(unreachable[i] ?? 0)) >>> 0",
    replace: "(word & (wanted[i] ?? 0)) >>> 0",
  },
  {
    clauses: ["FEAT-7", "INIT-11"],
    name: "gives up without setting FAILED",
    project: pci,
    file: device,
    find: "await this.#addStatus(DeviceStatus.FAILED).catch(() => {});",
    replace: "{}",
  },
  {
    clauses: ["INIT-12"],
    name: "goes on after a step that failed",
    project: pci,
    file: attach,
    find: "await device?.abandon()",
    replace: "await device?.start()",
  },
  {
    clauses: ["STATUS-4"],
    name: "waits for a device that needs a reset",
    project: pci,
    file: device,
    find: "for (const { ring } of this.#queues) ring.fail(fault);",
    replace: "",
  },
  {
    clauses: ["RESFEAT-3"],
    name: "does not accept ACCESS_PLATFORM",
    project: pci,
    file: features,
    find: "  ReservedFeature.ACCESS_PLATFORM,\n",
    replace: "",
  },
  {
    clauses: ["RESFEAT-6"],
    name: "does not accept RING_PACKED",
    project: pci,
    file: features,
    find: "  ReservedFeature.RING_PACKED,\n",
    replace: "",
  },
  {
    clauses: ["RESFEAT-7"],
    name: "does not accept ORDER_PLATFORM",
    project: pci,
    file: features,
    find: "  ReservedFeature.ORDER_PLATFORM,\n",
    replace: "",
  },
  {
    clauses: ["RESFEAT-13"],
    name: "does not accept NOTIF_CONFIG_DATA",
    project: pci,
    file: features,
    find: "  ReservedFeature.NOTIF_CONFIG_DATA,\n",
    replace: "",
  },
  {
    clauses: ["RESFEAT-10"],
    name: "accepts SR_IOV",
    project: pci,
    file: features,
    find: "  ReservedFeature.RING_PACKED,\n",
    replace: "  ReservedFeature.RING_PACKED,\n  ReservedFeature.SR_IOV,\n",
  },
  {
    clauses: ["RESFEAT-8"],
    name: "accepts ORDER_PLATFORM and orders nothing",
    project: pci,
    file: "packages/pci-transport/src/rings.ts",
    find: " || features.has(ReservedFeature.ORDER_PLATFORM)",
    replace: "",
  },
  {
    clauses: ["CONFIG-4"],
    name: "wants no more configuration than a page",
    project: pci,
    file: config,
    find: "    if (offset + width > this.length)",
    replace: "    if (offset + width > this.length || this.length > 4096)",
  },
  {
    clauses: ["BLK-OP-3"],
    name: "does not accept RO",
    project: block,
    file: "packages/vtblk/src/features.ts",
    find: "  BlockFeature.RO,\n  BlockFeature.BLK_SIZE",
    replace: "  BlockFeature.BLK_SIZE",
  },
  {
    clauses: ["BLK-INIT-1", "BLK-INIT-3"],
    name: "negotiates FLUSH and sends none",
    project: block,
    file: vtblk,
    find: "!this.#canFlush && this.#fault === null",
    replace: "this.#fault === null",
  },
  {
    clauses: ["BLK-INIT-2"],
    name: "sends flushes to a device without FLUSH",
    project: block,
    file: vtblk,
    find: "!this.#canFlush && this.#fault === null",
    replace: "false",
  },
  {
    clauses: ["BLK-OP-13"],
    name: "takes what was written for stable once the cache mode is switched",
    project: block,
    file: vtblk,
    find: "await driver.#reset;",
    replace: "await driver.#reset;\n      driver.#canFlush = false;",
  },
  {
    clauses: ["BLK-OP-15"],
    name: "takes discarded sectors for zeroes",
    project: block,
    file: vtblk,
    find: "  strategy(bio: Bio): boolean {",
    replace:
      "  strategy(bio: Bio): boolean {\n    if (bio.command === BioCommand.DISCARD) this.discarded = bio.position;\n    if (bio.command === BioCommand.READ && bio.position === this.discarded) {\n      bio.data.fill(0);\n      this.#events.done(bio, null);\n      return true;\n    }",
  },
  {
    clauses: ["BLK-OP-16"],
    name: "takes a discard or zeroes that failed in part for done",
    project: block,
    file: vtblk,
    find: "    if (fault === null) this.#resets = 0;",
    replace:
      "    if (type === BlockRequestType.DISCARD || type === BlockRequestType.WRITE_ZEROES) fault = null;\n    if (fault === null) this.#resets = 0;",
  },
  {
    clauses: ["BLK-INIT-7"],
    name: "accepts no DISCARD of any zoned disk",
    project: block,
    file: "packages/vtblk/src/features.ts",
    find: "    if (!zoned) {\n      refused.push(BlockFeature.ZONED);",
    replace:
      "    refused.push(BlockFeature.DISCARD);\n    if (!zoned) {\n      refused.push(BlockFeature.ZONED);",
  },
  {
    clauses: ["BLK-INIT-9"],
    name: "refuses host-aware disks, too, when zones are not to be driven",
    project: block,
    file: "packages/vtblk/src/features.ts",
    find: "if (model === BlockZonedModel.HM) {",
    replace: "if (model !== BlockZonedModel.NONE) {",
  },
  {
    clauses: ["BLK-INIT-10"],
    name: "looks at the zones that are not to be driven",
    project: block,
    file: "packages/vtblk/src/features.ts",
    find: "    if (!zoned) {\n      refused.push(BlockFeature.ZONED);",
    replace: "    if (false) {\n      refused.push(BlockFeature.ZONED);",
  },
  {
    clauses: ["BLK-OP-25"],
    name: "does not read where an append went",
    project: block,
    file: "packages/vtblk/src/request-queue.ts",
    find: "    bio.position += at;\n",
    replace: "",
  },
  {
    clauses: ["BLK-CFG-LEGACY-1"],
    name: "reads legacy configuration in the other byte order",
    project: block,
    file: config,
    find: "return this.#registers.read(this.#base() + offset, width);",
    replace:
      "return this.#registers.read(this.#base() + offset, width).then((value) => width !== 4 ? value : (((value & 0xff) << 24) | ((value & 0xff00) << 8) | ((value >>> 8) & 0xff00) | (value >>> 24)) >>> 0);",
  },
  {
    clauses: ["BLK-OP-LEGACY-2"],
    name: "believes the used length of a legacy device",
    project: block,
    file: "packages/vtblk/src/request-queue.ts",
    find: "this.#options.legacy || ",
    replace: "",
  },
  {
    clauses: ["CLEANUP-2"],
    name: "takes its buffers back before the device is reset",
    project: block,
    file: vtblk,
    find: "await this.#device.release();\n      this.#free();",
    replace: "this.#free();\n      await this.#device.release();",
  },
  {
    clauses: ["NET-RX-8", "NET-RX-10", "NET-RX-11"],
    name: "takes frames of tunnels that were not negotiated",
    project: network,
    file: receiveQueue,
    find: "if ((gso & TUNNEL_GSO) !== 0 || (needsCsum && (word & TUNNEL_CSUM) !== 0)) {",
    replace: "if (false) {",
  },
  {
    clauses: ["NET-RX-1", "NET-RX-5", "NET-RX-6"],
    name: "refuses flags that it does not know, and a hdr_len that is not right",
    project: network,
    file: receiveQueue,
    find: "const gso = word >>> 8;",
    replace:
      "const gso = word >>> 8;\n    if ((word & 0xf0) !== 0 || halves[h + 1] !== 54) return false;",
  },
  {
    clauses: ["NET-RX-4", "NET-RX-7"],
    name: "takes the offsets of every checksum for those of a partial one",
    project: network,
    file: receiveQueue,
    find: "if (needsCsum && (word & NetHeaderFlag.RSC_INFO) === 0) {",
    replace: "if (true) {",
  },
  {
    clauses: ["NET-RX-3", "NET-RX-9"],
    name: "has fields of tunnels in every header",
    project: network,
    file: "packages/vtnet/src/modes.ts",
    find: "? NET_HEADER_SIZE",
    replace: "? NET_HEADER_SIZE + 4",
  },
  {
    clauses: ["NET-CFG-11", "NET-CFG-12"],
    name: "takes every link for one of 10 Gbit/s",
    project: network,
    file: link,
    find: "speed >= 0 && speed <= SPEED_MAX ? speed : null",
    replace: "10_000",
  },
  {
    clauses: ["NET-CFG-5", "NET-CFG-6"],
    name: "takes a link for up where there is a status, and only there",
    project: network,
    file: link,
    find: "up: (status & NetStatus.LINK_UP) !== 0,",
    replace: "up: features.has(NetFeature.STATUS),",
  },
  {
    clauses: ["NET-CFG-4"],
    name: "makes up an address that somebody may own",
    project: network,
    file: "packages/vtnet/src/mac.ts",
    find: "mac[0] = 0xb2;",
    replace: "mac[0] = 0xb0;",
  },
  {
    clauses: ["NET-ANNOUNCE-1"],
    name: "acknowledges an announcement that it does not make",
    project: network,
    file: "packages/vtnet/src/vtnet.ts",
    find: "this.#traffic.streams.transmit(rarp(this.#setup.mac));",
    replace: "",
  },
  {
    clauses: ["NET-CTRL-MAC-2"],
    name: "does not tell the device that it has another address",
    project: network,
    file: "packages/vtnet/src/setup.ts",
    find: "(mac === null || formatMac(mac) !== formatMac(this.mac))",
    replace: "false",
  },
  {
    clauses: ["NET-HDR-LEGACY-2"],
    name: "believes the used lengths of transmitted frames and of commands",
    project: network,
    file: "packages/ring/src/split-queue.ts",
    find: "if (this.#clips) {",
    replace: "if (false) {",
  },
  {
    clauses: ["NET-CFG-LEGACY-1"],
    name: "reads legacy words of two bytes in the other byte order",
    project: network,
    file: config,
    find: "return this.#registers.read(this.#base() + offset, width);",
    replace:
      "return this.#registers.read(this.#base() + offset, width).then((value) => width !== 2 ? value : ((value & 0xff) << 8) | (value >>> 8));",
  },
  {
    clauses: ["BALLOON-FEAT-2"],
    name: "accepts PAGE_POISON and fills no page",
    project: balloon,
    file: "packages/balloon/src/features.ts",
    find: "if (!poisoned) wanted = wanted.without(BalloonFeature.PAGE_POISON);",
    replace: "if (!poisoned) wanted = all;",
  },
  {
    clauses: ["BALLOON-FEAT-3"],
    name: "reports pages that must keep their content, without PAGE_POISON",
    project: balloon,
    file: "packages/balloon/src/features.ts",
    find: "else if (!offered.has(BalloonFeature.PAGE_POISON))",
    replace: "else if (false)",
  },
  {
    clauses: ["BALLOON-OP-1"],
    name: "gives the device half of the pages that it wants",
    project: balloon,
    file: "packages/balloon/src/vtballoon.ts",
    find: 'this.#desired = config["numPages"] ?? 0;',
    replace: 'this.#desired = (config["numPages"] ?? 0) >>> 1;',
  },
  {
    clauses: ["BALLOON-HINT-4"],
    name: "begins rounds of hints and hints nothing",
    project: balloon,
    file: "packages/balloon/src/free-pages.ts",
    find: "if (round.id !== command || !(await this.#hint(round))) await this.#end();",
    replace: "await this.#end();",
  },
  {
    clauses: ["BALLOON-OP-5"],
    name: "gives no page back when the guest is out of memory",
    project: balloon,
    file: "packages/balloon/src/balloon.ts",
    find: "const ranges = this.#pages.shift(PAGES_PER_REQUEST);\n    this.#untold.push(ranges);",
    replace: "const ranges: MemoryRange[] = [];",
  },
  {
    clauses: ["BALLOON-OP-LEGACY-1"],
    name: "believes the used lengths of a balloon's requests",
    project: balloon,
    file: "packages/balloon/src/request.ts",
    find: "while (queue.dequeue() >= 0)",
    replace: "while (queue.dequeue() >= 0 && queue.usedLength === 0)",
  },
  {
    clauses: ["BALLOON-HINT-8", "BALLOON-HINT-9", "BALLOON-REPORT-1"],
    name: "uses pages that were hinted or reported as the device left them",
    project: balloon,
    file: "packages/core/src/memory.ts",
    find: "new Uint8Array(this.buffer, offset, length).fill(0)",
    replace: "new Uint8Array(this.buffer, offset, length)",
  },
  {
    clauses: ["BALLOON-HINT-10"],
    name: "keeps pages that were hinted",
    project: balloon,
    file: "packages/balloon/src/free-pages.ts",
    find: "if (range !== null) this.#options.memory.give(range);",
    replace: "",
  },
  {
    clauses: ["BALLOON-POISON-1"],
    name: "uses deflated pages that are not filled with poison_val",
    project: balloon,
    file: "packages/balloon/src/balloon.ts",
    find: "fill?.(range);",
    replace: "",
  },
  {
    clauses: ["BALLOON-REPORT-5"],
    name: "reports single pages",
    project: balloon,
    file: "packages/balloon/src/free-pages.ts",
    find: "const RANGE_MIN = 64 << 10;",
    replace: "const RANGE_MIN = 4 << 10;",
  },
  {
    clauses: ["CONSOLE-MP-2"],
    name: "takes a console port for any other",
    project: consoles,
    file: "packages/console/src/port.ts",
    find: "this.#console = true;",
    replace: "",
  },
  {
    clauses: ["CONSOLE-CFG-LEGACY-1"],
    name: "reads columns and rows of a legacy device in the other byte order",
    project: consoles,
    file: config,
    find: "return this.#registers.read(this.#base() + offset, width);",
    replace:
      "return this.#registers.read(this.#base() + offset, width).then((value) => width !== 2 ? value : ((value & 0xff) << 8) | (value >>> 8));",
  },
  {
    clauses: ["CONSOLE-LEGACY-2"],
    name: "believes the used lengths of transmitted bytes",
    project: consoles,
    file: "packages/console/src/transmit-queue.ts",
    find: "const length = this.#lengths[slot] as number;",
    replace: "const length = this.#slots.queue.usedLength;",
  },
  {
    clauses: ["SCSI-OP-LEGACY-1"],
    name: "believes the used lengths of commands on the legacy interface",
    project: "@virtio/vtscsi",
    file: "packages/vtscsi/src/request-queue.ts",
    find: "if (!legacy && used < ScsiAnswer.SENSE) return this.#short(used);",
    replace: "if (used < ScsiAnswer.SENSE) return this.#short(used);",
  },
];

/** A vite plugin that makes the mutant which VIRTIO_MUTANT names, if it names one. */
export const mutate = {
  name: "mutant",
  enforce: "pre" as const,
  transform(code: string, id: string): string | null {
    const name = process.env["VIRTIO_MUTANT"];
    if (name === undefined) return null;
    const mutant = mutants.find((each) => each.name === name);
    if (mutant === undefined) throw new Error(`no mutant '${name}'`);
    if (!id.endsWith(mutant.file)) return null;
    if (code.split(mutant.find).length !== 2)
      throw new Error(`mutant '${name}': its text does not stand once in ${mutant.file}`);
    return code.replace(mutant.find, () => mutant.replace);
  },
};
