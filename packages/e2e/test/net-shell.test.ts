// The network as a user of the shell sees it: embedded and on QEMU, with the same words; and two machines on one cable.
import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import type { Machine } from "@virtio/core";
import { embedded, net as embeddedNet } from "@virtio/hypervisor";
import { StreamBackend } from "@virtio/hypervisor/node";
import { ethernet, Headers, PcapngWriter, readPcap, verify } from "@virtio/packets";
import { net, qemu } from "@virtio/qemu";
import { Kernel, load, Shell } from "virtio";
import { FileHost } from "virtio/node";
import { describe, expect, it, onTestFinished } from "vitest";
import { boot } from "./command.js";
import { folder, hasQemu } from "./machines.js";

const file = folder();
const cwd = dirname(file("x"));
/** Whether this user may make a tap and give it an address. */
const hasTap =
  process.getuid?.() === 0 && existsSync("/dev/net/tun") && spawnSync("ip", ["-V"]).status === 0;
const hasTshark = spawnSync("tshark", ["--version"]).status === 0;

/** What two machines say that must be the same: all but times, and the offloads that QEMU has for a tap alone. */
const comparable = (text: string): string =>
  text
    .replaceAll(/time=[\d.]+ ms/g, "time=T")
    .replaceAll(/= [\d.]+\/[\d.]+\/[\d.]+\/[\d.]+ ms/g, "= T")
    .replaceAll(/expires in \d+ seconds/g, "expires in T")
    .replaceAll(/^\toptions=.*$/gm, "\toptions=O");

/** What tshark makes of the frames of a capture that a filter passes: fields, by frame. */
function tshark(capture: string, fields: readonly string[], filter = ""): readonly string[][] {
  const read = ["-r", file(capture), "-o", "ip.check_checksum:TRUE"];
  const print = ["-T", "fields", "-E", "separator=|", ...fields.flatMap((field) => ["-e", field])];
  const text = execFileSync("tshark", [...read, ...print, "-Y", filter], {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "ignore"],
  });
  return text.split("\n").flatMap((row) => (row === "" ? [] : [row.split("|")]));
}

describe("ping, dhclient and tcpdump", () => {
  const said: string[] = [];
  const commands = [
    "dhclient vtnet0",
    "tcpdump -i vtnet0 -w",
    "ping -c 3 -i 0.01 10.0.2.2; ping6 -c 1 fe80::2%vtnet0; ifconfig vtnet0; arp -a; killall tcpdump",
  ];
  for (const machine of ["embedded", "qemu"] as const)
    describe.skipIf(machine === "qemu" && !hasQemu)(
      `on ${machine}${machine === "qemu" ? " (needs QEMU)" : ""}`,
      () => {
        const capture = `${machine}.pcapng`;

        it("work, in the same words as on the other machine", async () => {
          const [lease, dump, rest] = commands;
          const line = `${lease}; ${dump} ${capture}; ${rest}`;
          const { status, stdout, stderr } = await boot(
            cwd,
            ...["--machine", machine, "--quiet", "-c", line],
          );
          expect(status, stderr).toBe(0);
          expect(stdout).toContain("bound to 10.0.2.15 -- renewal in 43200 seconds.\n");
          expect(stdout).toContain("3 packets transmitted, 3 packets received, 0.0% packet loss\n");
          expect(stdout).toContain("1 packets transmitted, 1 packets received, 0.0% packet loss\n");
          expect(stdout).toContain("\tinet 10.0.2.15 netmask 0xffffff00 broadcast 10.0.2.255\n");
          expect(stderr).toBe(
            "tcpdump: listening on vtnet0, link-type EN10MB (Ethernet), capture size 262144 bytes\n" +
              "12 packets captured\n12 packets received by filter\n0 packets dropped by kernel\n",
          );
          said.push(comparable(stdout));
          expect(
            said.every((text) => text === said[0]),
            said.join("\n---\n"),
          ).toBe(true);
        });

        it("leave a capture with interface, direction and time", () => {
          const frames = readPcap(readFileSync(file(capture)));
          expect(frames).toHaveLength(12);
          expect(new Set(frames.map((frame) => frame.interface))).toEqual(new Set(["vtnet0"]));
          expect(frames.slice(0, 4).map(({ direction }) => direction)).toEqual([
            ...["out", "in", "out", "in"],
          ]);
          const times = frames.map(({ time }) => time);
          expect(times).toEqual(times.toSorted((a, b) => a - b));
          expect(Math.abs((times[0] ?? 0) - Date.now())).toBeLessThan(120_000);
        });

        it("leave a capture without a bad checksum, in tshark's eyes too where it is installed", () => {
          const frames = readPcap(readFileSync(file(capture)));
          const headers = new Headers();
          for (const { bytes } of frames) {
            expect(headers.parse(bytes, 0, bytes.length)).toBe(true);
            expect(verify(bytes, 0, headers)).toBe(true);
          }
          if (!hasTshark) return;
          const rows = tshark(capture, ["frame.interface_name", "_ws.col.Info"]);
          expect(rows).toHaveLength(12);
          expect(new Set(rows.map(([name]) => name))).toEqual(new Set(["vtnet0"]));
          expect(rows[0]?.[1]).toBe("Who has 10.0.2.2? Tell 10.0.2.15");
          expect(rows.filter(([, info]) => info?.startsWith("Echo (ping) reply"))).toHaveLength(4);
          const bad = ["ip", "icmp", "icmpv6"].map(
            (protocol) => `${protocol}.checksum.status == 0`,
          );
          expect(tshark(capture, ["frame.number"], ["_ws.malformed", ...bad].join(" || "))).toEqual(
            [],
          );
        });
      },
    );

  it("end in time when nobody answers", async () => {
    const { status, stdout, stderr } = await boot(
      cwd,
      ...["--quiet", "--device", "net", "-c"],
      "ifconfig vtnet0 10.0.2.20/24; ping -t 1 10.0.2.99",
    );
    expect([status, stderr]).toEqual([2, ""]);
    expect(stdout).toContain("1 packets transmitted, 0 packets received, 100.0% packet loss\n");
  });
});

describe("back ends of the embedded machine", () => {
  it("play a capture to the interface, and record what it sends", async () => {
    const writer = new PcapngWriter();
    const header = { destination: "ff:ff:ff:ff:ff:ff", source: "52:54:00:00:00:09" } as const;
    const frames = [1, 2, 3].map((n) =>
      ethernet({ ...header, etherType: 0x88b5 }, new Uint8Array(46).fill(n)),
    );
    const blocks = [writer.header(), writer.addInterface("em0")];
    for (const bytes of frames) blocks.push(writer.frame({ direction: "in", time: 0, bytes }));
    writeFileSync(file("in.pcapng"), Buffer.concat(blocks));
    const { status, stderr } = await boot(
      cwd,
      ...["--quiet", "--device", "net,backend=pcap:in.pcapng,mac=52:54:00:00:00:01", "-c"],
      // The interface announces its link-local address: then the capture is played.
      "tcpdump -c 4 -i vtnet0 -w seen.pcapng; ifconfig vtnet0 up; ping6 -c 1 -W 50 fe80::5054:ff:fe00:1%vtnet0",
    );
    expect(stderr).toContain("4 packets captured\n");
    expect(status).toBe(0);
    const seen = readPcap(readFileSync(file("seen.pcapng")));
    expect(seen.map(({ direction }) => direction)).toEqual(["out", "in", "in", "in"]);
    expect(seen.slice(1).map(({ bytes }) => [...bytes])).toEqual(frames.map((f) => [...f]));
    const recorded = readPcap(readFileSync(file("in.pcapng.out.pcapng")));
    expect([...(recorded[0]?.bytes ?? [])]).toEqual([...(seen[0]?.bytes ?? [])]);
  });
});

describe("a loop", () => {
  const machines = ["embedded", "qemu"] as const;
  for (const machine of machines)
    it.skipIf(machine === "qemu" && !hasQemu)(
      `gives each frame back on ${machine}${machine === "qemu" ? " (needs QEMU)" : ""}`,
      async () => {
        const { status } = await boot(
          cwd,
          ...["--machine", machine, "--quiet", "--device", "net,backend=loop", "-c"],
          "tcpdump -i vtnet0 -w loop.pcapng; ifconfig vtnet0 up; ping6 -t 1 fe80::99",
        );
        expect(status).toBe(2);
        const frames = readPcap(readFileSync(file("loop.pcapng")));
        const passed = (way: "in" | "out") =>
          frames.filter(({ direction }) => direction === way).map(({ bytes }) => [...bytes]);
        // The last may be on its way.
        expect(passed("in").length).toBeGreaterThan(1);
        expect(passed("in")).toEqual(passed("out").slice(0, passed("in").length));
      },
    );
});

describe("a tap", () => {
  const machines = ["embedded", ...(hasQemu ? ["qemu"] : [])];
  it.skipIf(!hasTap).each(machines)(
    "reaches this computer from %s (needs a tun device)",
    async (machine) => {
      const name = `vtap${process.pid % 100_000}`;
      const ip = (...args: string[]): void => void execFileSync("ip", args);
      ip("tuntap", "add", "dev", name, "mode", "tap");
      try {
        ip("address", "add", "10.99.77.1/24", "dev", name);
        ip("link", "set", name, "up");
        const device = ["--device", `net,backend=tap:${name}`];
        const line =
          "ifconfig vtnet0 10.99.77.2/24; ping -c 2 -i 0.01 10.99.77.1; ping -c 1 -s 1400 10.99.77.1";
        const { status, stdout, stderr } = await boot(
          cwd,
          ...["--machine", machine, "--quiet", ...device, "-c", line],
        );
        expect([status, stderr]).toEqual([0, ""]);
        expect(stdout).toContain("2 packets transmitted, 2 packets received, 0.0% packet loss\n");
        expect(stdout).toContain("1408 bytes from 10.99.77.1: icmp_seq=0 ttl=64");
      } finally {
        ip("link", "delete", name);
      }
    },
  );
});

/** A shell on a machine. */
async function shellOn(machine: Machine): Promise<(line: string) => Promise<string>> {
  const kernel = new Kernel({ machine, image: await load() });
  await kernel.boot();
  let said = "";
  const out = (text: string): void => {
    said += text;
  };
  const shell = new Shell({ kernel, host: new FileHost(cwd), out, err: out });
  onTestFinished(async () => {
    await shell.close();
    await kernel.shutdown();
  });
  return async (line) => {
    said = "";
    expect(await shell.run(line), said).toBe(0);
    return said;
  };
}

describe.skipIf(!hasQemu)("two machines on one cable (needs QEMU)", () => {
  it("reach each other, with jumbo frames too: one on QEMU, one embedded", async () => {
    const real = await qemu({ devices: [net({ backend: "wire", mac: "52:54:00:00:00:01" })] });
    const wire = new StreamBackend(real.wire("net0"));
    const model = await embedded({
      devices: [embeddedNet({ backend: wire, mac: "52:54:00:00:00:02", packed: true })],
    });
    const [a, b] = [await shellOn(real), await shellOn(model)];
    await a("ifconfig vtnet0 10.1.0.1/24 mtu 9000");
    await b("ifconfig vtnet0 10.1.0.2/24 mtu 9000");
    expect(await a("ping -c 2 -i 0.01 10.1.0.2")).toContain("64 bytes from 10.1.0.2: icmp_seq=1");
    expect(await b("ping -c 2 -i 0.01 -s 8000 10.1.0.1")).toContain("8008 bytes from 10.1.0.1:");
    expect(await b("ping6 -c 1 fe80::5054:ff:fe00:1")).toContain("1 packets received, 0.0%");
    const filter = await real.qmp.execute("query-rx-filter", { name: "net0" });
    expect(filter).toMatchObject([
      {
        "main-mac": "52:54:00:00:00:01",
        promiscuous: false,
        "multicast-table": expect.arrayContaining(["33:33:ff:00:00:01", "01:00:5e:00:00:01"]),
      },
    ]);
    await real.qmp.execute("set_link", { name: "net0", up: false });
    await expect.poll(() => a("ifconfig vtnet0")).toContain("status: no carrier");
    await real.qmp.execute("set_link", { name: "net0", up: true });
    await expect.poll(() => a("ifconfig vtnet0")).toContain("status: active");
    expect(await a("ping -c 1 10.1.0.2")).toContain("1 packets received, 0.0%");
  });
});
