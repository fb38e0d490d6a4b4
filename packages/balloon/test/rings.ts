// The rings of a balloon behind its driver's back: for devices and drivers that lie.
import { CommonConfig } from "@virtio/core/pci";
import type { EmbeddedMachine } from "@virtio/hypervisor";

/** Where the structures lie in BAR 4, and how far doorbells are apart. */
const STRUCTURES_BAR = 4;
const NOTIFY = 0x3000;
const MULTIPLIER = 4;

/** The two rings of a split queue of the machine's only device, as words of 16 bits. */
export async function ringsOf(
  machine: EmbeddedMachine,
  queue: number,
): Promise<{ available: Uint16Array; used: Uint16Array; ring: () => Promise<void> }> {
  const [fn] = await machine.buses[0].bus.functions();
  const bar = await fn?.mapBar(STRUCTURES_BAR);
  if (bar === undefined) throw new Error("no device");
  await bar.write(CommonConfig.QUEUE_SELECT, 2, queue);
  const { buffer, base } = machine.memory;
  const area = async (register: number): Promise<Uint16Array> =>
    new Uint16Array(buffer, (await bar.read(register, 4)) - base, 64);
  return {
    available: await area(CommonConfig.QUEUE_DRIVER),
    used: await area(CommonConfig.QUEUE_DEVICE),
    ring: () => bar.write(NOTIFY + queue * MULTIPLIER, 2, queue),
  };
}

/** Makes a device want a reset: more is available than its queue holds. */
export async function breakDevice(machine: EmbeddedMachine, queue: number): Promise<void> {
  const { available, ring } = await ringsOf(machine, queue);
  available[1] = ((available[1] ?? 0) + 300) & 0xffff;
  await ring();
}
