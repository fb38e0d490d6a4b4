// The firmware: a processor that sleeps. QEMU wants one to run; the driver on this side is the guest.

/** Bytes of the smallest image that `-bios` takes. */
const FIRMWARE_SIZE = 64 << 10;

/** Where an x86 processor begins: 16 bytes below the end of the firmware (Intel SDM volume 3, first instruction executed). */
const RESET_VECTOR = FIRMWARE_SIZE - 16;

/** `cli`, `hlt`, and a jump back to the `hlt`. */
const HALT: readonly number[] = [0xfa, 0xf4, 0xeb, 0xfd];

/** An image for `-bios` under which the virtual processor uses no time while the machine runs. */
export function haltFirmware(): Uint8Array {
  const image = new Uint8Array(FIRMWARE_SIZE);
  image.set(HALT, RESET_VECTOR);
  return image;
}
