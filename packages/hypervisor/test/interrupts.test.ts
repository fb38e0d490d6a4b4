// Kinds of interrupts of the embedded machine's functions, driven by hand.
import { BlockRequestType } from "@virtio/core/block";
import {
  CommonConfig,
  MsiControl,
  MsixControl,
  PciRegister,
  VirtioCapability,
} from "@virtio/core/pci";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { BareGuest } from "./bare-guest.js";

describe("a function with MSI", () => {
  let guest: BareGuest;
  let rung = 0;
  let served = 0;

  /** Programs the message and enables it. */
  const enable = async (mask: number): Promise<void> => {
    const { address, data } = await guest.fn.interrupts.message(0, "msi", () => {
      rung += 1;
    });
    await guest.fn.write(guest.msiAt + 4, 4, address);
    await guest.fn.write(guest.msiAt + 8, 4, 0);
    await guest.fn.write(guest.msiAt + 12, 2, data);
    await guest.fn.write(guest.msiAt + 16, 4, mask);
    const control = await guest.fn.read(guest.msiAt + 2, 2);
    await guest.fn.write(guest.msiAt + 2, 2, control | MsiControl.ENABLE);
  };
  const flush = async (): Promise<void> => {
    await guest.request(BlockRequestType.FLUSH, 0, 0, 0);
    await guest.settle();
  };

  beforeEach(async () => {
    guest = await BareGuest.start({ vectors: 0, msi: true });
    rung = 0;
    served = 0;
    await guest.fn.interrupts.line("line", async () => {
      served += 1;
      return (await guest.read(0, 1, VirtioCapability.ISR)) !== 0;
    });
    await guest.run();
  });
  afterEach(() => guest.machine.close());

  it("has no MSI-X with vectors=0, asks for one message and takes a 64-bit address", async () => {
    expect(guest.msixAt).toBe(0);
    expect(await guest.fn.read(guest.msiAt + 2, 2)).toBe(
      MsiControl.ADDRESS_64 | MsiControl.VECTOR_MASKING,
    );
    expect(guest.fn.interrupts.deliverable).toEqual(["msix", "msix-shared", "msi", "intx"]);
  });

  it("interrupts by its line until MSI is enabled, then by the message and no more by the line", async () => {
    await flush();
    expect([served > 0, rung]).toEqual([true, 0]);
    served = 0;
    await enable(0);
    await flush();
    expect([served, rung]).toEqual([0, 1]);
    expect(await guest.read(0, 1, VirtioCapability.ISR)).toBe(1);
  });

  it("keeps a masked message pending, and sends it once when it is unmasked", async () => {
    await enable(1);
    await flush();
    await flush();
    expect(rung).toBe(0);
    expect(await guest.fn.read(guest.msiAt + 20, 4)).toBe(1);
    await guest.fn.write(guest.msiAt + 16, 4, 0);
    await guest.until(() => rung > 0);
    expect(rung).toBe(1);
    expect(await guest.fn.read(guest.msiAt + 20, 4)).toBe(0);
  });

  it("sends nothing to an address above 4 GiB that is no interrupt's", async () => {
    await enable(0);
    await guest.fn.write(guest.msiAt + 8, 4, 1);
    await flush();
    expect(rung).toBe(0);
  });
});

describe("a function without MSI", () => {
  it("lowers its line when MSI-X is enabled, and keeps messages while the function is masked", async () => {
    const guest = await BareGuest.start();
    await guest.run();
    await guest.request(BlockRequestType.FLUSH, 0, 0, 0);
    let rung = 0;
    const { address, data } = await guest.fn.interrupts.message(0, "queue", () => {
      rung += 1;
    });
    for (const [i, word] of [address, 0, data, 0].entries())
      await guest.msixTable.write(i * 4, 4, word);
    await guest.write(CommonConfig.QUEUE_MSIX_VECTOR, 2, 0);
    await guest.fn.write(guest.msixAt + 2, 2, MsixControl.ENABLE | MsixControl.FUNCTION_MASK);
    expect((await guest.fn.read(PciRegister.STATUS, 2)) & 8).toBe(0);
    let served = 0;
    await guest.fn.interrupts.line("line", async () => {
      served += 1;
      return false;
    });
    await guest.request(BlockRequestType.FLUSH, 0, 0, 0);
    await guest.settle();
    expect([served, rung, guest.msiAt]).toEqual([0, 0, 0]);
    await guest.fn.write(guest.msixAt + 2, 2, MsixControl.ENABLE);
    await guest.until(() => rung === 1);
    await guest.machine.close();
  });
});
