// The kernel configuration file, config(5), as far as it says what is compiled in: ident, device, nodevice, options, nooptions and
// `include GENERIC`.
import { found, linesOf, type Position, syntaxFault } from "./syntax.js";

/** What a kernel configuration asks for. */
export interface KernelConf {
  /** kern.ident */
  readonly ident: string;
  /** Whether everything there is gets compiled in, but for what `without` names. */
  readonly generic: boolean;
  /** Devices to compile in, and where the file says so. */
  readonly devices: ReadonlyMap<string, Position>;
  /** What nodevice takes out again. */
  readonly without: ReadonlyMap<string, Position>;
  /** `NAME` or `NAME=VALUE`. No option changes this kernel yet: kern.conftxt shows them. */
  readonly options: readonly string[];
}

/** The configuration that holds when nobody gives another. */
export const GENERIC: KernelConf = {
  ident: "GENERIC",
  generic: true,
  devices: new Map(),
  without: new Map(),
  options: [],
};

interface Token {
  readonly text: string;
  readonly column: number;
}

const KEYWORDS = ["device", "ident", "include", "nodevice", "nooptions", "options"] as const;

/** Words, quoted strings and commas of one line. */
function tokensOf(source: string, refuse: (column: number, what: string) => never): Token[] {
  const tokens: Token[] = [];
  let at = 0;
  while (at < source.length) {
    const rest = source.slice(at);
    const blank = /^\s+/.exec(rest);
    if (blank !== null) {
      at += blank[0].length;
      continue;
    }
    if (rest.startsWith("#")) break;
    const token = /^(?:,|"([^"]*)"|([^\s,"#]+))/.exec(rest);
    if (token === null) return refuse(source.length + 1, `expected '"', found the end of the line`);
    tokens.push({ text: token[1] ?? token[0], column: at + 1 });
    at += token[0].length;
  }
  return tokens;
}

/**
 * Reads a kernel configuration. Whether the devices exist is the loader's to say: {@link load}.
 * @param file - the name that errors carry; the last part of it is the default ident.
 * @throws VirtioFault INVALID: `MYKERNEL:2:1: unknown statement 'devise' (…)`
 */
export function parseKernelConf(text: string, file: string = "kernel.conf"): KernelConf {
  let ident = /[^/\\]*$/.exec(file)?.[0] ?? file;
  let generic = false;
  const devices = new Map<string, Position>();
  const without = new Map<string, Position>();
  const options = new Set<string>();

  for (const [index, source] of linesOf(text).entries()) {
    const refuse = (column: number, what: string): never => {
      throw syntaxFault({ file, line: index + 1, column }, what);
    };
    const [keyword, ...rest] = tokensOf(source, refuse);
    if (keyword === undefined) continue;
    const end = source.length + 1;

    /** A list `A, B, C`: at least one, a comma between two. */
    const list = (): readonly Token[] =>
      rest.flatMap((token, i) => {
        const wantsComma = i % 2 === 1;
        if (wantsComma !== (token.text === ","))
          refuse(
            token.column,
            `expected ${wantsComma ? "','" : `the name of a ${keyword.text}`}, found ${found(token.text)}`,
          );
        return wantsComma ? [] : [token];
      });
    const named = (what: string): readonly Token[] => {
      const tokens = list();
      return rest.length % 2 === 1
        ? tokens
        : refuse(end, `expected ${what}, found the end of the line`);
    };
    const one = (what: string): Token => {
      const [only, extra] = rest;
      if (extra !== undefined)
        refuse(extra.column, `expected the end of the line, found ${found(extra.text)}`);
      return only ?? refuse(end, `expected ${what}, found the end of the line`);
    };

    switch (keyword.text) {
      case "ident":
        ident = one("a name").text;
        break;
      case "include": {
        const { text: name, column } = one("GENERIC");
        if (name !== "GENERIC") refuse(column, `cannot include '${name}', only GENERIC`);
        generic = true;
        break;
      }
      case "device":
      case "nodevice": {
        const [into, outOf] = keyword.text === "device" ? [devices, without] : [without, devices];
        for (const { text: name, column } of named("the name of a device")) {
          into.set(name, { file, line: index + 1, column });
          outOf.delete(name);
        }
        break;
      }
      case "options":
      case "nooptions":
        for (const { text: option } of named("an option"))
          if (keyword.text === "options") options.add(option);
          else
            for (const had of options)
              if (had === option || had.startsWith(`${option}=`)) options.delete(had);
        break;
      default:
        refuse(
          keyword.column,
          `unknown statement '${keyword.text}' (there is: ${KEYWORDS.join(", ")})`,
        );
    }
  }
  return { ident, generic, devices, without, options: [...options] };
}
