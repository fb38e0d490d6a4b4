// A guest without a driver on the legacy interface.
import { LEGACY_PAGE_SIZE, LegacyRegister } from "@virtio/core/pci";
import { BareGuest, type GuestOptions } from "./bare-guest.js";

/** A whole life of one block device by its legacy registers. */
export class LegacyGuest extends BareGuest {
  static override async start(options: GuestOptions = {}): Promise<LegacyGuest> {
    const guest = new LegacyGuest();
    await guest.boot({ legacy: "on", queueSize: 8, ...options });
    return guest;
  }

  override status(value: number): Promise<void> {
    return this.legacy.write(LegacyRegister.DEVICE_STATUS, 1, value);
  }

  override readStatus(): Promise<number> {
    return this.legacy.read(LegacyRegister.DEVICE_STATUS, 1);
  }

  override async offered(): Promise<number[]> {
    return [await this.legacy.read(LegacyRegister.DEVICE_FEATURES, 4)];
  }

  override async accept([word = 0]: readonly number[]): Promise<void> {
    await this.legacy.write(LegacyRegister.DRIVER_FEATURES, 4, word);
  }

  /** There is no FEATURES_OK. Without a choice: ANY_LAYOUT, if it is offered. */
  override async negotiate(
    choose: (offered: number[]) => number[] = ([low = 0]) => [low & (1 << 27)],
  ): Promise<boolean> {
    await this.accept(choose(await this.offered()));
    return true;
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

  override async run(choose?: (offered: number[]) => number[]): Promise<void> {
    await this.acknowledge();
    await this.negotiate(choose);
    await this.placeQueue();
    await this.enableQueue();
    await this.status(7);
  }

  override ringDoorbell(_width?: 2 | 4, value = 0): Promise<void> {
    return this.legacy.write(LegacyRegister.QUEUE_NOTIFY, 2, value);
  }
}
