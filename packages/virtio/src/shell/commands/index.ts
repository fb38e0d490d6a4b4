// The commands, in the order in which `help` lists them.
import { VirtioFault } from "@virtio/core";
import type { Command } from "../command.js";
import { arpCommand, ndpCommand } from "./arp.js";
import { camcontrol } from "./camcontrol.js";
import { cu } from "./cu.js";
import { dd } from "./dd.js";
import { devinfo } from "./devinfo.js";
import { dhclient } from "./dhclient.js";
import { diskinfo } from "./diskinfo.js";
import { dmesg } from "./dmesg.js";
import { geom } from "./geom.js";
import { halt } from "./halt.js";
import { ifconfig } from "./ifconfig.js";
import { iostat } from "./iostat.js";
import { kenv } from "./kenv.js";
import { kldload, kldstat, kldunload } from "./kld.js";
import { netstat } from "./netstat.js";
import { pciconf } from "./pciconf.js";
import { ping6Command, pingCommand } from "./ping.js";
import { sysctl } from "./sysctl.js";
import { killall, tcpdump } from "./tcpdump.js";
import { trim } from "./trim.js";
import { vmstat } from "./vmstat.js";

const help: Command = {
  name: "help",
  usage: "help [command]",
  summary: "list the commands, or say how one is called",
  async run(args, { out }) {
    const shown = commands.filter(({ name }) => args.length === 0 || args.includes(name));
    const missing = args.find((arg) => !commands.some(({ name }) => name === arg));
    if (missing !== undefined) throw new VirtioFault("NOT_FOUND", `no command '${missing}'`);
    const width = Math.max(...shown.map(({ name }) => name.length));
    for (const { name, usage, summary } of shown)
      out(args.length === 0 ? `${name.padEnd(width)}  ${summary}\n` : `usage: ${usage}\n`);
    return 0;
  },
  complete: async () => commands.map(({ name }) => name),
};

/** Every command of the shell. */
export const commands: readonly Command[] = [
  arpCommand,
  camcontrol,
  cu,
  dd,
  devinfo,
  dhclient,
  diskinfo,
  dmesg,
  geom,
  halt,
  help,
  ifconfig,
  iostat,
  kenv,
  killall,
  kldload,
  kldstat,
  kldunload,
  ndpCommand,
  netstat,
  pciconf,
  pingCommand,
  ping6Command,
  sysctl,
  tcpdump,
  trim,
  vmstat,
];
