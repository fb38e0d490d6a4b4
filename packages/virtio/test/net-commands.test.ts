import {
  ArpOperation,
  arp,
  BROADCAST_MAC,
  EtherType,
  echo,
  ethernet,
  Headers,
  neighbor,
  parseArp,
  parseEcho,
  parseNeighbor,
  readPcap,
  solicitedNode,
} from "@virtio/packets";
import { describe, expect, it } from "vitest";
import {
  broadcastOf,
  linkLocalOf,
  netmaskOf,
  networkOf,
  parseInterfaceAddress,
  parseNetmask,
} from "../src/net/interface-address.js";
import { netShell, SilentWire } from "./net-fakes.js";

const MAC = "52:54:00:12:34:56";
const LINK_LOCAL = "fe80::5054:ff:fe12:3456";

describe("an interface address", () => {
  it.each([
    ["10.0.2.15/24", "10.0.2.15", 24, "10.0.2.0"],
    ["10.1.2.3", "10.1.2.3", 8, "10.0.0.0"],
    ["172.16.5.5", "172.16.5.5", 16, "172.16.0.0"],
    ["192.168.1.77/27", "192.168.1.77", 27, "192.168.1.64"],
    ["FEC0:0::15/64", "fec0::15", 64, "fec0::"],
    ["2001:db8:ffff::1/33", "2001:db8:ffff::1", 33, "2001:db8:8000::"],
  ])("%s is %s of %d bits in %s", (text, address, prefix, network) => {
    expect(parseInterfaceAddress(text)).toEqual({ address, prefix });
    expect(networkOf({ address, prefix })).toBe(network);
  });

  it("has a broadcast address, a mask, and a link-local form of its MAC address", () => {
    expect(broadcastOf({ address: "192.168.1.77", prefix: 27 })).toBe("192.168.1.95");
    expect([0, 8, 27, 32].map(netmaskOf)).toEqual([
      ...["0x00000000", "0xff000000", "0xffffffe0", "0xffffffff"],
    ]);
    expect(["255.255.255.224", "0xffffff00", "0.0.0.0"].map(parseNetmask)).toEqual([27, 24, 0]);
    expect(linkLocalOf(MAC)).toEqual({ address: LINK_LOCAL, prefix: 64 });
  });

  it.each(["10.0.2.15/33", "10.0.2.15/", "10.0.2/24", "fec0::1/129", "1.2.3.4/8/8", "x"])(
    "is none: %s",
    (text) => {
      expect(() => parseInterfaceAddress(text)).toThrow();
    },
  );

  it("has no mask with holes", () => {
    expect(() => parseNetmask("255.0.255.0")).toThrow("bad netmask");
  });
});

describe("ifconfig", () => {
  it("prints an interface in FreeBSD's form", async () => {
    const { run, vtnet } = await netShell();
    const facts =
      "\toptions=9<RXCSUM,VLAN_MTU>\n\tether 52:54:00:12:34:56\n" +
      "\tmedia: Ethernet autoselect (10Gbase-T <full-duplex>)\n\tstatus: active\n";
    const down = `vtnet0: flags=8802<BROADCAST,SIMPLEX,MULTICAST> metric 0 mtu 1500\n${facts}`;
    for (const line of ["ifconfig", "ifconfig -a", "ifconfig vtnet0"])
      expect(await run(line)).toEqual({ status: 0, out: down, err: "" });
    vtnet.link = { up: false, speed: 1000, duplex: "half" };
    vtnet.promiscuous = true;
    vtnet.allMulticast = true;
    expect((await run("ifconfig vtnet0 inet 10.0.2.15/24")).err).toBe("");
    expect((await run("ifconfig vtnet0")).out).toBe(
      "vtnet0: flags=8b43<UP,BROADCAST,RUNNING,PROMISC,ALLMULTI,SIMPLEX,MULTICAST> metric 0 mtu 1500\n" +
        "\toptions=9<RXCSUM,VLAN_MTU>\n\tether 52:54:00:12:34:56\n" +
        "\tinet 10.0.2.15 netmask 0xffffff00 broadcast 10.0.2.255\n" +
        `\tinet6 ${LINK_LOCAL}%vtnet0 prefixlen 64 scopeid 0x1\n` +
        "\tmedia: Ethernet autoselect\n\tstatus: no carrier\n",
    );
    expect((await run("ifconfig -m vtnet0")).out).toContain(
      "\tcapabilities=30b<RXCSUM,TXCSUM,VLAN_MTU,TSO4,TSO6>\n",
    );
    expect((await run("ifconfig -l")).out).toBe("vtnet0\n");
  });

  it.each([
    ["up", ["up"]],
    ["down", ["down"]],
    ["mtu 9000", ["setMtu 9000"]],
    ["lladdr 52:54:00:00:00:09", ["setMac 52:54:00:00:00:09"]],
    ["ether 52:54:00:00:00:09 up", ["setMac 52:54:00:00:00:09", "up"]],
    ["promisc allmulti", ["setPromiscuous true", "setAllMulticast true"]],
    ["-promisc -allmulti", ["setPromiscuous false", "setAllMulticast false"]],
    ["txcsum -rxcsum", ["setCapability TXCSUM true", "setCapability RXCSUM false"]],
    ["tso", ["setCapability TSO4 true", "setCapability TSO6 true"]],
    ["-tso4 vlanmtu", ["setCapability TSO4 false", "setCapability VLAN_MTU true"]],
    // What is not there is off.
    ["-lro -vlanhwtag -vlanhwfilter", []],
  ])("%s", async (words, asked) => {
    const { run, vtnet } = await netShell();
    expect(await run(`ifconfig vtnet0 ${words}`)).toEqual({ status: 0, out: "", err: "" });
    expect(vtnet.asked).toEqual(asked);
  });

  it.each([
    ["ifconfig vtnet7", "ifconfig: interface vtnet7 does not exist\n"],
    ["ifconfig vtnet0 frob", "ifconfig: frob: bad value\nusage: "],
    ["ifconfig vtnet0 mtu", "ifconfig: 'mtu' requires argument\nusage: "],
    ["ifconfig vtnet0 mtu big", "ifconfig: mtu big: not a number\nusage: "],
    ["ifconfig vtnet0 mtu 10000", "ifconfig: vtnet0: mtu 10000\n"],
    ["ifconfig vtnet0 lro", "ifconfig: vtnet0: lro: not a capability of it (ifconfig -m)\n"],
    ["ifconfig vtnet0 inet 10.0.2.300/24", 'ifconfig: not an IPv4 address: "10.0.2.300"\n'],
    ["ifconfig vtnet0 inet fec0::1", "ifconfig: fec0::1: bad value\nusage: "],
    ["ifconfig vtnet0 inet6 fe80::1%em0", "ifconfig: fe80::1%em0: not an address of vtnet0\n"],
    ["ifconfig vtnet0 inet 10.0.2.9 delete", "ifconfig: vtnet0: Can't assign requested address\n"],
    ["ifconfig vtnet0 alias", "ifconfig: 'alias' goes behind an address"],
  ])("refuses %s", async (line, err) => {
    const { run } = await netShell();
    const result = await run(line);
    expect(result).toMatchObject({ status: 1, out: "" });
    expect(result.err.startsWith(err), result.err).toBe(true);
  });

  it("gives, adds and takes addresses", async () => {
    const { run, vtnet } = await netShell();
    const inet = async (): Promise<string[]> =>
      [...(await run("ifconfig vtnet0")).out.matchAll(/^\tinet6? (\S+)/gm)].map(([, a]) => `${a}`);
    const local = `${LINK_LOCAL}%vtnet0`;
    await run("ifconfig vtnet0 10.0.2.15 netmask 255.255.255.0");
    expect(await inet()).toEqual(["10.0.2.15", local]);
    expect(vtnet.running).toBe(true);
    await run("ifconfig vtnet0 inet 10.0.2.16/24");
    expect(await inet()).toEqual(["10.0.2.16", local]);
    await run("ifconfig vtnet0 inet 10.0.3.1/24 alias");
    await run("ifconfig vtnet0 inet6 fec0::15 prefixlen 64");
    expect(await inet()).toEqual(["10.0.2.16", "10.0.3.1", "fec0::15", local]);
    expect(vtnet.groups).toContain("33:33:ff:00:00:15");
    await run("ifconfig vtnet0 inet 10.0.2.16 delete");
    await run("ifconfig vtnet0 inet6 fec0::15 -alias");
    expect(await inet()).toEqual(["10.0.3.1", local]);
    expect(vtnet.groups).not.toContain("33:33:ff:00:00:15");
  });
});

describe("dhclient", () => {
  it("brings the interface up and gives it the address", async () => {
    const { timed, run, vtnet } = await netShell();
    const { status, out, err } = await timed("dhclient vtnet0");
    expect({ status, err }).toEqual({ status: 0, err: "" });
    expect(out).toBe(
      "DHCPDISCOVER on vtnet0 to 255.255.255.255 port 67 interval 3\nDHCPOFFER from 10.0.2.2\n" +
        "DHCPREQUEST on vtnet0 to 255.255.255.255 port 67\nDHCPACK from 10.0.2.2\n" +
        "bound to 10.0.2.15 -- renewal in 43200 seconds.\n",
    );
    expect(vtnet.running).toBe(true);
    expect((await run("ifconfig vtnet0")).out).toContain(
      "\tinet 10.0.2.15 netmask 0xffffff00 broadcast 10.0.2.255\n",
    );
    expect(await timed("dhclient -q vtnet0")).toMatchObject({ status: 0, out: "" });
  });

  it("gives up when nobody offers, and when there is no link", async () => {
    const { timed, vtnet } = await netShell(new SilentWire());
    const { status, out, err, ms } = await timed("dhclient vtnet0");
    expect({ status, err }).toEqual({ status: 1, err: "dhclient: No DHCPOFFERS received.\n" });
    expect(out.match(/DHCPDISCOVER/g)).toHaveLength(3);
    expect(ms).toBeLessThan(17_000);
    vtnet.setLink(false);
    expect(await timed("dhclient vtnet0")).toMatchObject({
      ...{ status: 1, out: "", err: "dhclient: vtnet0: no link, giving up\n" },
    });
    expect(vtnet.listeners.size).toBe(0);
  });

  it("waits for the link", async () => {
    const { run, timed, vtnet, machine } = await netShell();
    vtnet.setLink(false);
    machine.tasks.callout(2000, () => vtnet.setLink(true));
    expect(await timed("dhclient vtnet0")).toMatchObject({ status: 0, err: "" });
    expect((await run("ifconfig vtnet0")).out).toContain("inet 10.0.2.15 ");
  });
});

describe("ping", () => {
  it("prints each answer and what came of all", async () => {
    const { timed } = await netShell();
    await timed("ifconfig vtnet0 10.0.2.15/24");
    const { status, out, err } = await timed("ping -c 3 10.0.2.2");
    expect({ status, err }).toEqual({ status: 0, err: "" });
    const lines = out.split("\n");
    expect(lines.slice(0, 2)).toEqual([
      "PING 10.0.2.2 (10.0.2.2): 56 data bytes",
      expect.stringMatching(/^64 bytes from 10\.0\.2\.2: icmp_seq=0 ttl=255 time=\d\.\d{3} ms$/),
    ]);
    expect(lines.slice(4, 7)).toEqual([
      "",
      "--- 10.0.2.2 ping statistics ---",
      "3 packets transmitted, 3 packets received, 0.0% packet loss",
    ]);
    expect(lines[7]).toMatch(/^round-trip min\/avg\/max\/stddev = [\d./]+ ms$/);
  });

  it("reaches link-local addresses by their interface, or the only one there is", async () => {
    const { timed } = await netShell();
    await timed("ifconfig vtnet0 up");
    for (const target of ["fe80::2%vtnet0", "fe80::2"]) {
      const { status, out } = await timed(`ping6 -c 1 ${target}`);
      expect(status).toBe(0);
      expect(out).toMatch(
        /^PING6\(56=40\+8\+8 bytes\) fe80::5054:ff:fe12:3456%vtnet0 --> fe80::2%vtnet0\n16 bytes from fe80::2%vtnet0, icmp_seq=0 hlim=255 time=[\d.]+ ms\n\n--- fe80::2%vtnet0 ping6 statistics ---\n1 packets transmitted, 1 packets received, 0\.0% packet loss\nround-trip min\/avg\/max\/std-dev = /,
      );
    }
    const two = await netShell(new SilentWire(), 2);
    await two.timed("ifconfig vtnet0 up; ifconfig vtnet1 up");
    expect((await two.timed("ping6 -c 1 fe80::2")).err).toBe(
      "ping6: fe80::2: which interface? Write fe80::2%vtnet0\n",
    );
  });

  it("reaches its own address, and another network by the router", async () => {
    const { timed, run } = await netShell();
    await timed("dhclient vtnet0");
    expect((await timed("ping -c 1 10.0.2.15")).status).toBe(0);
    // The gateway forwards nothing: the request went to it, and no answer came.
    const { status, out } = await timed("ping -c 1 -W 50 192.0.2.1");
    expect(status).toBe(2);
    expect(out).toContain("1 packets transmitted, 0 packets received, 100.0% packet loss\n");
    expect((await run("arp -a")).out).toContain("? (10.0.2.2) at 52:55:0a:00:02:02 on vtnet0 ");
  });

  it.each([
    [
      "ping -c 1 10.0.2.2",
      "ping: 10.0.2.2: Network is down (ifconfig vtnet0 up, or dhclient vtnet0)\n",
    ],
    ["ping -c 1 -s 1473 10.0.2.2", "ping: sendto: Message too long (mtu 1500)\n", "up"],
    ["ping -c 1 192.0.2.1", "ping: 192.0.2.1: No route to host\n", "up"],
    ["ping -c 0 10.0.2.2", "ping: -c 0: not a number from 1 to 2147483648\nusage: ping "],
    ["ping 10.0.2", 'ping: not an IPv4 address: "10.0.2"\n'],
    ["ping", "usage: ping "],
  ])("that cannot be is one line: %s", async (line, err, up = "") => {
    const { timed } = await netShell(new SilentWire());
    if (up !== "") await timed("ifconfig vtnet0 10.0.2.15/24");
    const result = await timed(line);
    expect(result.status).toBe(1);
    expect(result.err.startsWith(err), result.err).toBe(true);
  });

  it("gives up on a neighbor that does not answer", async () => {
    const { timed } = await netShell(new SilentWire());
    await timed("ifconfig vtnet0 10.0.2.15/24");
    const { status, err, ms } = await timed("ping -c 5 10.0.2.9");
    expect({ status, err }).toEqual({ status: 1, err: "ping: 10.0.2.9: Host is down\n" });
    expect(ms).toBeLessThan(6000);
    expect(await timed("ping -t 2 10.0.2.9")).toMatchObject({ status: 2, err: "" });
  });

  it("ends in time: -t, -W, and Ctrl-C, with what was counted", async () => {
    const wire = new SilentWire();
    const { timed, vtnet, machine } = await netShell(wire);
    await timed("ifconfig vtnet0 10.0.2.15/24");
    const reply = { operation: ArpOperation.REPLY, senderMac: "52:54:00:00:00:09" };
    const known = arp({ ...reply, senderIp: "10.0.2.9", targetMac: MAC, targetIp: "10.0.2.15" });
    const header = { destination: MAC, source: reply.senderMac, etherType: EtherType.ARP };
    machine.tasks.callout(10, () => vtnet.receive(ethernet(header, known)));
    const waited = await timed("ping -c 1 -W 200 10.0.2.9");
    expect(waited.status).toBe(2);
    expect(waited.ms).toBeLessThan(300);
    const bounded = await timed("ping -t 3 10.0.2.9");
    expect(bounded.out).toContain("3 packets transmitted, 0 packets received, 100.0% packet loss");
    expect(bounded.ms).toBeLessThan(3100);
    const controller = new AbortController();
    machine.tasks.callout(2500, () => controller.abort());
    const ended = await timed("ping 10.0.2.9", controller.signal);
    expect(ended.out).toContain("3 packets transmitted, 0 packets received");
  });
});

describe("a station", () => {
  const header = { source: "52:54:00:00:00:09", destination: MAC } as const;
  /** What it says to a frame. */
  const said = async (frame: Uint8Array): Promise<[Uint8Array, Headers] | null> => {
    const wire = new SilentWire();
    const { timed, vtnet } = await netShell(wire);
    await timed("ifconfig vtnet0 10.0.2.15/24");
    // It knows who asks.
    const who = { operation: ArpOperation.REQUEST, senderMac: header.source };
    const asks = { ...who, senderIp: "10.0.2.9", targetMac: MAC, targetIp: "10.0.2.15" };
    vtnet.receive(ethernet({ ...header, etherType: EtherType.ARP }, arp(asks)));
    await timed("arp -a");
    const before = wire.sent.length;
    vtnet.receive(frame);
    for (let i = 0; i < 5; i++) await new Promise((resolve) => setImmediate(resolve));
    const answer = wire.sent[before];
    const headers = new Headers();
    if (answer === undefined || !headers.parse(answer, 0, answer.length)) return null;
    return [answer, headers];
  };
  const request = { type: "request", id: 1, sequence: 2, data: Uint8Array.of(3) } as const;

  it("answers ARP requests for its address", async () => {
    const who = { operation: ArpOperation.REQUEST, senderMac: header.source };
    const asked = (targetIp: string) =>
      ethernet(
        { ...header, destination: BROADCAST_MAC, etherType: EtherType.ARP },
        arp({ ...who, senderIp: "10.0.2.9", targetMac: "00:00:00:00:00:00", targetIp }),
      );
    const answer = await said(asked("10.0.2.15"));
    expect(answer && parseArp(...answer)).toMatchObject({
      ...{ operation: ArpOperation.REPLY, senderMac: MAC, senderIp: "10.0.2.15" },
    });
    expect(await said(asked("10.0.2.16"))).toBeNull();
  });

  it("answers echo requests to its address", async () => {
    const path = { source: "10.0.2.9", destination: "10.0.2.15" };
    const frame = ethernet({ ...header, etherType: EtherType.IPV4 }, echo(path, request));
    const answer = await said(frame);
    expect(answer && parseEcho(...answer)).toEqual({ ...request, type: "reply" });
    frame[frame.length - 1] = 0;
    expect(await said(frame)).toBeNull();
  });

  it("answers solicitations for its link-local address", async () => {
    const path = { source: "fe80::9", destination: solicitedNode(LINK_LOCAL) };
    const message = {
      type: "neighbor-solicitation",
      target: LINK_LOCAL,
      mac: header.source,
    } as const;
    const frame = ethernet({ ...header, etherType: EtherType.IPV6 }, neighbor(path, message));
    const answer = await said(frame);
    expect(answer && parseNeighbor(...answer)).toMatchObject({
      ...{ type: "neighbor-advertisement", target: LINK_LOCAL, mac: MAC, solicited: true },
    });
  });
});

describe("arp, ndp and netstat", () => {
  it("list what is known, until it is forgotten", async () => {
    const { timed, run } = await netShell();
    await timed("dhclient vtnet0");
    await timed("ping -c 1 10.0.2.2; ping6 -c 1 fe80::2");
    const own = "? (10.0.2.15) at 52:54:00:12:34:56 on vtnet0 permanent [ethernet]\n";
    const { out } = await run("arp -a");
    expect(out).toMatch(
      /^\? \(10\.0\.2\.2\) at 52:55:0a:00:02:02 on vtnet0 expires in \d+ seconds \[ethernet\]\n/,
    );
    expect(out.endsWith(own)).toBe(true);
    expect((await run("ndp -a")).out).toMatch(
      /^Neighbor {29}Linklayer Address {2}Netif Expire {4}S Flags\nfe80::2%vtnet0 {23}52:56:00:00:00:02 vtnet0 \d+s +R R\nfe80::5054:ff:fe12:3456%vtnet0 {7}52:54:00:12:34:56 vtnet0 permanent R\n$/,
    );
    expect((await run("arp 10.0.2.2")).status).toBe(0);
    await run("arp -d 10.0.2.2");
    expect((await run("arp -a")).out).toBe(own);
    expect((await run("arp 10.0.2.2")).err).toBe("arp: 10.0.2.2 -- no entry\n");
    await run("ndp -c");
    expect((await run("ndp -a")).out).not.toContain("fe80::2%");
    expect((await run("arp")).err).toMatch(/^usage: arp /);
  });

  it("forget after 20 minutes", async () => {
    const { timed, run, machine } = await netShell();
    await timed("ifconfig vtnet0 10.0.2.15/24; ping -c 1 10.0.2.2");
    machine.pass(1_200_000);
    expect((await run("arp -a")).out).not.toContain("10.0.2.2)");
  });

  it("netstat -i counts", async () => {
    const { timed, run } = await netShell();
    expect((await run("netstat -i")).out).toBe(
      "Name     Mtu Network  Address           Ipkts Ierrs Idrop Opkts Oerrs Coll\n" +
        "vtnet0* 1500 <Link#1> 52:54:00:12:34:56     1     4     5     6     9    0\n",
    );
    await timed("ifconfig vtnet0 10.0.2.15/24");
    expect((await run("netstat -i -b -d -4 -I vtnet0")).out).toBe(
      "Name    Mtu Network     Address           Ipkts Ierrs Idrop Ibytes Opkts Oerrs Obytes Coll Drop\n" +
        "vtnet0 1500 <Link#1>    52:54:00:12:34:56     1     4     5      2     6     9      7    0   10\n" +
        "vtnet0    - 10.0.2.0/24 10.0.2.15             -     -     -      -     -     -      -    -    -\n",
    );
    expect((await run("netstat -i -I vtnet9")).err).toBe(
      "netstat: interface vtnet9 does not exist\n",
    );
    expect((await run("netstat")).status).toBe(1);
  });
});

describe("tcpdump", () => {
  it("captures behind the commands that follow, until it has its count", async () => {
    const { timed, run, vtnet, host } = await netShell();
    await timed("ifconfig vtnet0 10.0.2.15/24; ping -c 1 10.0.2.2");
    expect(await run("tcpdump -i vtnet0 -c 4 -w x.pcapng")).toEqual({
      status: 0,
      out: "",
      err: "tcpdump: listening on vtnet0, link-type EN10MB (Ethernet), capture size 262144 bytes\n",
    });
    expect(vtnet.promiscuous).toBe(true);
    const { err } = await timed("ping -c 3 10.0.2.2");
    expect(err).toBe(
      "4 packets captured\n4 packets received by filter\n0 packets dropped by kernel\n",
    );
    expect([vtnet.promiscuous, vtnet.captures]).toEqual([false, 0]);
    const frames = readPcap(host.bytes("x.pcapng"));
    expect(frames.map((frame) => [frame.interface, frame.direction])).toEqual([
      ...[
        ["vtnet0", "out"],
        ["vtnet0", "in"],
        ["vtnet0", "out"],
        ["vtnet0", "in"],
      ],
    ]);
    expect(frames[0]?.time).toBeGreaterThanOrEqual(1_700_000_000_000);
    expect(host.closed).toBe(1);
  });

  it("ends with killall, and with the shell", async () => {
    const { run, shell, vtnet, host } = await netShell();
    await run("tcpdump -p -i vtnet0 -w a.pcapng");
    expect(vtnet.promiscuous).toBe(false);
    expect((await run("killall tcpdump")).err).toMatch(/^0 packets captured\n/);
    expect(await run("killall tcpdump")).toMatchObject({
      status: 1,
      err: "No matching processes were found\n",
    });
    await run("tcpdump -w b.pcapng");
    await shell.close();
    expect([vtnet.captures, host.closed]).toEqual([0, 2]);
    expect(readPcap(host.bytes("b.pcapng"))).toEqual([]);
  });

  it("ends when its interface does, and before a halt", async () => {
    const { run, timed, vtnet, host } = await netShell();
    await run("tcpdump -i vtnet0 -w a.pcapng");
    vtnet.end();
    expect((await timed("dhclient -q vtnet0")).err).toMatch(/^0 packets captured\n/m);
    expect([vtnet.captures, host.closed]).toEqual([0, 1]);
    expect(vtnet.asked).not.toContain("setPromiscuous false");
    const other = await netShell();
    await other.run("tcpdump -i vtnet0 -w b.pcapng");
    expect((await other.run("halt")).err).toMatch(/^0 packets captured\n/);
    expect([other.vtnet.promiscuous, other.host.closed]).toEqual([false, 1]);
  });

  it("says what the file did not take", async () => {
    const { run, timed, vtnet, host } = await netShell();
    const create = host.create.bind(host);
    host.create = async (path) => ({
      ...(await create(path)),
      write: async () => {
        throw new Error("disk full");
      },
    });
    const { err } = await timed("tcpdump -i vtnet0 -w x.pcapng; dhclient -q vtnet0");
    expect(err).toContain("tcpdump: disk full\n");
    expect([vtnet.captures, vtnet.promiscuous, host.closed]).toEqual([0, false, 1]);
    expect((await run("killall tcpdump")).status).toBe(1);
  });

  it.each([
    ["tcpdump -i vtnet0", "tcpdump: there is no -w: packets are not printed here\nusage: "],
    ["tcpdump -i vtnet9 -w x", "tcpdump: interface vtnet9 does not exist\n"],
    ["tcpdump -c 0 -w x", "tcpdump: invalid packet count 0\nusage: "],
  ])("refuses %s", async (line, err) => {
    const { run } = await netShell();
    const result = await run(line);
    expect(result.status).toBe(1);
    expect(result.err.startsWith(err), result.err).toBe(true);
  });
});
