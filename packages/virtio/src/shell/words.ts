// A command line as words: quotes as in sh(1), `;` between commands, comments after `#`.
import { VirtioFault } from "@virtio/core";

/** One command: its name and arguments. */
export type Words = readonly string[];

/** What sh(1) would take for pipes, redirections and jobs: there are none here, and a file called `|` needs quotes. */
const RESERVED = "|&<>()`";

/**
 * The commands of a line.
 * @throws VirtioFault INVALID: `column 5: expected '"', found the end of the line`
 */
export function parseCommands(line: string): readonly Words[] {
  const commands: string[][] = [[]];
  let word: string | null = null;
  const refuse = (at: number, what: string): never => {
    throw new VirtioFault("INVALID", `column ${at + 1}: ${what}`);
  };
  const endWord = (): void => {
    if (word !== null) commands.at(-1)?.push(word);
    word = null;
  };
  for (let at = 0; at < line.length; at++) {
    const character = line.charAt(at);
    if (character === "#" && word === null) break;
    if (/\s/.test(character)) endWord();
    else if (character === ";") {
      endWord();
      commands.push([]);
    } else if (character === "'" || character === '"') {
      let text = "";
      const opened = at;
      for (at++; line.charAt(at) !== character; at++) {
        if (at >= line.length)
          refuse(opened, `expected another ${character}, found the end of the line`);
        if (character === '"' && line.charAt(at) === "\\" && at + 1 < line.length) at++;
        text += line.charAt(at);
      }
      word = (word ?? "") + text;
    } else if (character === "\\") {
      at++;
      if (at >= line.length)
        refuse(at, "expected a character after '\\', found the end of the line");
      word = (word ?? "") + line.charAt(at);
    } else if (RESERVED.includes(character))
      refuse(at, `there is no '${character}' in this shell: put it in quotes`);
    else word = (word ?? "") + character;
  }
  endWord();
  return commands.filter((words) => words.length > 0);
}
