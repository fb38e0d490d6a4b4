// loader.conf(5): one assignment a line, `name="value"`, comments after `#`. As on FreeBSD a value ends on its line, a backslash in
// quotes takes the next character as it is, and only plain words may go without quotes.
import { VirtioFault } from "@virtio/core";
import { found, linesOf, syntaxFault } from "./syntax.js";

/** One setting of the kernel environment, and who made it. */
export interface Assignment {
  readonly name: string;
  readonly value: string;
  /** `loader.conf:3`, `--set`: what an error about it begins with. */
  readonly origin: string;
}

const NAME = /^[A-Za-z_][\w.-]*/;
const WORD = /^[\w.-]+/;
const QUOTED = /^"((?:[^"\\]|\\.)*)"/;

/**
 * The assignments of a loader.conf, in the order of the file.
 * @param file - the name that errors and origins carry.
 * @throws VirtioFault INVALID: `loader.conf:3:14: expected '"', found the end of the line`
 */
export function parseLoaderConf(text: string, file: string = "loader.conf"): readonly Assignment[] {
  const assignments: Assignment[] = [];
  for (const [index, source] of linesOf(text).entries()) {
    let at = 0;
    const take = (pattern: RegExp): RegExpExecArray | null => {
      const match = pattern.exec(source.slice(at));
      at += match?.[0].length ?? 0;
      return match;
    };
    const refuse = (expected: string): never => {
      throw syntaxFault(
        { file, line: index + 1, column: at + 1 },
        `expected ${expected}, found ${found(source.slice(at))}`,
      );
    };
    const atEnd = (): boolean => {
      take(/^\s*/);
      return at === source.length || source[at] === "#";
    };

    if (atEnd()) continue;
    const name = take(NAME)?.[0] ?? refuse("a name");
    take(/^\s*/);
    if (take(/^=/) === null) refuse("'='");
    take(/^\s*/);
    const quoted = take(QUOTED);
    const value = quoted === null ? take(WORD)?.[0] : quoted[1]?.replace(/\\(.)/g, "$1");
    if (value === undefined && source[at] !== '"') refuse(`'"' or a plain word`);
    if (value === undefined) at = source.length;
    if (quoted === null && /^[^\s#]/.test(source.slice(at))) refuse("quotes around the value");
    assignments.push({ name, value: value ?? refuse(`'"'`), origin: `${file}:${index + 1}` });
    if (!atEnd()) refuse("the end of the line");
  }
  return assignments;
}

/**
 * One setting as a person types it: `hw.vtblk.no_ident=1`.
 * @throws VirtioFault INVALID
 */
export function parseSetting(text: string, origin: string): Assignment {
  const equals = text.indexOf("=");
  const name = equals < 0 ? text : text.slice(0, equals);
  if (equals < 0 || NAME.exec(name)?.[0] !== name)
    throw new VirtioFault("INVALID", `${origin} '${text}': not of the form NAME=VALUE`);
  return { name, value: text.slice(equals + 1), origin };
}
