import { type Command, getopt, noMore, UsageError } from "../command.js";

/** vmstat(8), of which there is `-i`: interrupts since boot. */
export const vmstat: Command = {
  name: "vmstat",
  usage: "vmstat -i [-a]",
  summary: "-i: interrupts taken since boot; -a those that never came too",
  async run(args, { kernel, out }) {
    const { flags, operands } = getopt(args, "ai");
    noMore(operands);
    if (!flags.has("i")) throw new UsageError("");
    const seconds = Math.max(1, Math.floor(kernel.uptime));
    const rows = kernel.machine
      .interrupts()
      .filter(({ count }) => count > 0 || flags.has("a"))
      .map(({ irq, names, count }) => ({ name: `${irq}: ${names.join(" ")}`, count }));
    const total = rows.reduce((sum, { count }) => sum + count, 0);
    const width = Math.max(24, ...rows.map(({ name }) => name.length));
    const line = (name: string, count: number | string, rate: number | string): void =>
      out(`${name.padEnd(width)} ${String(count).padStart(20)} ${String(rate).padStart(10)}\n`);
    line("interrupt", "total", "rate");
    for (const { name, count } of rows) line(name, count, Math.floor(count / seconds));
    line("Total", total, Math.floor(total / seconds));
    return 0;
  },
};
