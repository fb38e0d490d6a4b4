// A guest without a driver on the legacy interface.
import { LEGACY_PAGE_SIZE, LegacyRegister } from "@virtio/core/pci";
import { BareGuest, type GuestOptions } from "./bare-guest.js";

/** A whole life of one block device by its legacy registers. */
export class LegacyGuest extends BareGuest {
  static override async start(options: GuestOptions = {}): Promise<LegacyGuest> {
    const guest = new LegacyGuest(true);
    await guest.boot({ legacy: "on", queueSize: 8, ...options });
    guest.io = guest.legacy;
    return guest;
  }

  /** There is no FEATURES_OK. Without a choice: ANY_LAYOUT, if it is offered. */
  override negotiate(
    choose: (offered: number[]) => number[] = ([low = 0]) => [low & (1 << 27)],
  ): Promise<boolean> {
    return super.negotiate(choose);
  }

  override async placeQueue(): Promise<void> {
    this.ring.bytes.fill(0);
    const { offset } = this.ring;
    const { buffer } = this.machine.memory;
    await this.legacy.write(LegacyRegister.QUEUE_SELECT, 2, 0);
    this.size = await this.legacy.read(LegacyRegister.QUEUE_SIZE, 2);
    this.descriptors = new Uint32Array(buffer, offset, this.size * 4);
    this.available = new Uint16Array(buffer, offset + this.size * 16, 3 + this.size);
    this.used = new Uint32Array(buffer, offset + 4096, 1 + 2 * this.size);
  }

  override enableQueue(): Promise<void> {
    return this.legacy.write(LegacyRegister.QUEUE_ADDRESS, 4, this.ring.address / LEGACY_PAGE_SIZE);
  }

  override ringDoorbell(_width?: 2 | 4, value = 0): Promise<void> {
    return this.legacy.write(LegacyRegister.QUEUE_NOTIFY, 2, value);
  }
}
