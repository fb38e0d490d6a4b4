// Control messages as a device may say them, right or wrong.
import { CONSOLE_CONTROL_SIZE, ConsoleControl } from "@virtio/core/console";

/** One message, with what follows it. */
export function message(
  id: number,
  event: number,
  value = 0,
  data: Uint8Array = new Uint8Array(),
): Uint8Array {
  const bytes = new Uint8Array(CONSOLE_CONTROL_SIZE + data.length);
  const words = new DataView(bytes.buffer);
  words.setUint32(ConsoleControl.ID, id, true);
  words.setUint16(ConsoleControl.EVENT, event, true);
  words.setUint16(ConsoleControl.VALUE, value, true);
  bytes.set(data, CONSOLE_CONTROL_SIZE);
  return bytes;
}
