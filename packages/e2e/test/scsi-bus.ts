// What the end-to-end tests of SCSI share: vtscsi attached on a machine.
import type { AttachContext, Machine } from "@virtio/core";
import { attach, probe } from "@virtio/pci-transport";
import { type VtscsiBus, type VtscsiOptions, vtscsi } from "@virtio/vtscsi";

/** vtscsi on the first device of a machine's first bus. */
export async function scsiBusOf(
  machine: Machine,
  options: VtscsiOptions = {},
  context: Partial<AttachContext> = {},
): Promise<VtscsiBus> {
  const [bus] = machine.buses;
  if (bus?.kind !== "pci") throw new Error("no PCI bus");
  const [node] = await probe(bus.bus);
  if (node === undefined) throw new Error("no device");
  return attach(node, vtscsi(options), { cpus: machine.cpus, ...context });
}
