// The tilde of cu(1): at the beginning of a line it says that the next key is for cu.

const TILDE = 0x7e;
const DOT = 0x2e;
const EOT = 0x04;
const isEndOfLine = (byte: number): boolean => byte === 0x0a || byte === 0x0d;

/** What is typed, without what is for cu: `~.` and `~^D` end, `~~` is one tilde, any other key after a tilde is sent with it. */
export class Escapes {
  #atBeginning = true;
  #tilde = false;
  #over = false;

  /** `~.` was typed. */
  get over(): boolean {
    return this.#over;
  }

  /** Bytes to send; none from `~.` on. */
  take(bytes: Uint8Array): Uint8Array {
    const send: number[] = [];
    for (const byte of bytes) {
      if (this.#tilde) {
        this.#tilde = false;
        if (byte === DOT || byte === EOT) {
          this.#over = true;
          break;
        }
        send.push(TILDE);
        if (byte === TILDE) {
          this.#atBeginning = false;
          continue;
        }
      } else if (byte === TILDE && this.#atBeginning) {
        this.#tilde = true;
        continue;
      }
      send.push(byte);
      this.#atBeginning = isEndOfLine(byte);
    }
    return Uint8Array.from(send);
  }

  /** The input has ended: a tilde that waits for another key is sent. */
  rest(): Uint8Array {
    const tilde = this.#tilde;
    this.#tilde = false;
    return Uint8Array.from(tilde ? [TILDE] : []);
  }
}
