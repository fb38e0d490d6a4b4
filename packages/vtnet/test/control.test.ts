import { InterfaceCapability, ReservedFeature } from "@virtio/core";
import { NetControlAck, NetFeature } from "@virtio/core/net";
import { describe, expect, it } from "vitest";
import { type Fake, fake, running, turns, usual } from "./fake-device.js";

const macs = (count: number): string[] =>
  Array.from({ length: count }, (_, i) => `02:00:00:00:00:${i.toString(16).padStart(2, "0")}`);

/** Commands since the last look: class, command, data. */
function commands({ device }: Fake): [number, number, ...number[]][] {
  return device.commands
    .splice(0)
    .map(({ class: type, command, data }) => [type, command, ...data]);
}

describe("the receive filter", () => {
  it("is told at each init: modes, then tables as le32 count and addresses [NET-CTRL-MAC-3]", async () => {
    const made = await fake();
    await made.net.setUnicast(["02:00:00:00:00:01"]);
    await made.net.setMulticast(["01:00:5e:00:00:01", "33:33:00:00:00:01"]);
    expect(commands(made)).toEqual([]);
    await made.net.up();
    const unicast = [1, 0, 0, 0, 2, 0, 0, 0, 0, 1];
    const multicast = [2, 0, 0, 0, 1, 0, 0x5e, 0, 0, 1, 0x33, 0x33, 0, 0, 0, 1];
    const sent = [
      [0, 0, 0],
      [0, 1, 0],
      [1, 0, ...unicast, ...multicast],
    ];
    expect(commands(made)).toEqual(sent);
    await made.net.down();
    await made.net.up();
    expect(commands(made)).toEqual(sent);
  });

  it("sends each table in a descriptor of its own [NET-FRAME-LEGACY-4]", async () => {
    const made = await running();
    expect(made.device.commands.at(-1)?.segments).toEqual([2, 4, 4]);
  });

  it("falls back to promiscuous mode above 128 addresses, and back", async () => {
    const made = await running();
    commands(made);
    await made.net.setUnicast(macs(128));
    expect(commands(made).map(([type, command, first]) => [type, command, first])).toEqual([
      [0, 0, 0],
      [0, 1, 0],
      [1, 0, 128],
    ]);
    await made.net.setUnicast(macs(129));
    expect(commands(made).slice(0, 3)).toEqual([
      [0, 0, 1],
      [0, 1, 0],
      [1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]);
    expect(made.lines).toContain(
      "more than 128 MAC addresses assigned, falling back to promiscuous mode",
    );
    expect(made.net.promiscuous).toBe(false);
    await made.net.setMulticast(macs(129));
    // Both overflow: there is nothing to put into a table.
    expect(commands(made)).toEqual([
      [0, 0, 1],
      [0, 1, 1],
    ]);
    await made.net.setUnicast([]);
    expect(commands(made)[0]).toEqual([0, 0, 0]);
  });

  it("sends no command without CTRL_RX [NET-CTRL-RX-1] [NET-CTRL-RX-2] [NET-CTRL-MAC-1]", async () => {
    const made = await running({
      features: [NetFeature.MAC, NetFeature.CTRL_VQ, NetFeature.CTRL_MAC_ADDR],
    });
    await made.net.setPromiscuous(true);
    await made.net.setAllMulticast(true);
    await made.net.setMulticast(["01:00:5e:00:00:01"]);
    await expect(made.net.setMac("02:00:00:00:00:09")).rejects.toThrow(
      expect.objectContaining({ code: "UNSUPPORTED" }),
    );
    expect(commands(made)).toEqual([]);
  });

  it("knows VLANs, and tells them while the filter is on", async () => {
    const made = await running({ features: [...usual, NetFeature.CTRL_VLAN] });
    // Off at first, as in FreeBSD: the device must not filter.
    expect(made.device.negotiated.has(NetFeature.CTRL_VLAN)).toBe(false);
    await made.net.addVlan(5);
    await made.net.addVlan(4094);
    commands(made);
    await made.net.setCapability(InterfaceCapability.VLAN_HWFILTER, true);
    expect(made.device.negotiated.has(NetFeature.CTRL_VLAN)).toBe(true);
    expect(commands(made).filter(([type]) => type === 2)).toEqual([
      [2, 0, 5, 0],
      [2, 0, 0xfe, 0x0f],
    ]);
    await made.net.removeVlan(5);
    await made.net.removeVlan(5);
    await made.net.addVlan(7);
    expect(commands(made)).toEqual([
      [2, 1, 5, 0],
      [2, 0, 7, 0],
    ]);
    for (const id of [0, 4095, 1.5])
      await expect(made.net.addVlan(id)).rejects.toThrow(
        expect.objectContaining({ code: "INVALID" }),
      );
  });
});

describe("the MAC address", () => {
  it("is the device's [NET-CFG-3]", async () => {
    const { net, device } = await running();
    expect(net.mac).toBe("52:54:00:12:34:56");
    expect(device.written).toEqual([]);
  });

  it("is set by command, at each init again [NET-CTRL-MAC-2]", async () => {
    const made = await running({ features: [...usual, NetFeature.CTRL_MAC_ADDR] });
    expect(commands(made).filter(([type, command]) => type === 1 && command === 1)).toEqual([]);
    await made.net.setMac("02:00:00:00:00:09");
    expect(commands(made)).toEqual([[1, 1, 2, 0, 0, 0, 0, 9]]);
    expect(made.net.mac).toBe("02:00:00:00:00:09");
    await made.net.down();
    await made.net.up();
    expect(commands(made)[0]).toEqual([1, 1, 2, 0, 0, 0, 0, 9]);
    for (const bad of ["01:00:00:00:00:01", "00:00:00:00:00:00", "nonsense"])
      await expect(made.net.setMac(bad)).rejects.toThrow(
        expect.objectContaining({ code: "INVALID" }),
      );
  });

  it("is made up for a device that has none, locally administered [NET-CFG-4]", async () => {
    const { net } = await running({ features: [] });
    expect(net.mac).toMatch(/^b2(:[0-9a-f]{2}){5}$/);
  });

  it("is written to the configuration on the legacy interface only [NET-CFG-1]", async () => {
    const legacy = await running({ features: [NetFeature.MAC], legacy: true });
    await legacy.net.setMac("02:00:00:00:00:09");
    expect(legacy.device.written.slice(-6)).toEqual([
      [0, 2],
      [1, 0],
      [2, 0],
      [3, 0],
      [4, 0],
      [5, 9],
    ]);
    const modern = await running({ features: [NetFeature.MAC] });
    await expect(modern.net.setMac("02:00:00:00:00:09")).rejects.toThrow(
      expect.objectContaining({ code: "UNSUPPORTED" }),
    );
    expect(modern.device.written).toEqual([]);
  });
});

describe("a control queue", () => {
  it("that refuses is an error of the one who asked", async () => {
    const made = await running();
    made.device.answer = () => NetControlAck.ERR;
    await expect(made.net.setPromiscuous(true)).rejects.toThrow(
      expect.objectContaining({ code: "IO" }),
    );
    expect(made.lines).toContain("cannot enable promiscuous mode");
  });

  it("that answers nonsense has refused", async () => {
    const made = await fake();
    made.device.answer = () => 77;
    await made.net.up();
    expect(made.net.running).toBe(true);
    expect(made.lines).toContain("error setting host MAC filter table");
  });

  it("that never answers is one error, each, and hangs nothing", async () => {
    const made = await fake();
    made.device.answer = () => null;
    const up = made.net.up();
    const late = expect(up).rejects.toThrow(expect.objectContaining({ code: "TIMED_OUT" }));
    await turns();
    await made.device.tasks.pass(5000);
    await late;
    expect(made.net.running).toBe(false);
    // The device was reset meanwhile: another try begins anew.
    made.device.answer = () => 0;
    await made.net.up();
    expect(made.net.running).toBe(true);

    made.device.answer = () => null;
    const first = made.net.setPromiscuous(true);
    const second = made.net.setAllMulticast(true);
    const both = Promise.all(
      [first, second].map((each) =>
        expect(each).rejects.toThrow(expect.objectContaining({ code: "TIMED_OUT" })),
      ),
    );
    await turns();
    await made.device.tasks.pass(5000);
    await both;
    await made.net.detach();
    expect(made.device.released).toBe(1);
  });

  it("does not keep detach() waiting", async () => {
    const made = await fake();
    made.device.answer = () => null;
    const up = expect(made.net.up()).rejects.toThrow(expect.objectContaining({ code: "CLOSED" }));
    await turns();
    await made.net.detach();
    await up;
    expect(made.device.released).toBe(1);
  });
});

describe("pairs of queues", () => {
  const multiqueue = [...usual, NetFeature.MQ];

  it.each([
    { what: "the device's", queues: 4, cpus: 16, pairs: 4 },
    { what: "the CPUs'", queues: 16, cpus: 3, pairs: 3 },
    { what: "the driver's", queues: 16, cpus: 16, pairs: 8 },
    { what: "the tunable's", queues: 16, cpus: 16, driver: { mqMaxPairs: 2 }, pairs: 2 },
  ])(
    "are $what number, all of them set up before they are enabled [NET-MQ-1] [NET-MQ-2] [NET-RXBUF-5]",
    async ({ queues, cpus, driver, pairs }) => {
      const made = await fake({
        features: multiqueue,
        config: { maxVirtqueuePairs: queues },
        cpus,
        ...(driver === undefined ? {} : { driver }),
      });
      const posted: number[] = [];
      made.device.answer = ({ class: type }) => {
        if (type === 4) for (let i = 0; i < queues; i++) posted.push(made.device.posted(i).length);
        return 0;
      };
      await made.net.up();
      expect(made.net.queuePairs).toBe(pairs);
      expect(commands(made).at(-1)).toEqual([4, 0, pairs, 0]);
      // The control queue is behind all that the device has; those that are not used have nothing.
      expect(made.device.drivers).toHaveLength(2 * queues + 1);
      expect(posted).toEqual(Array.from({ length: queues }, (_, i) => (i < pairs ? 16 : 0)));
    },
  );

  it("fall back to one when the device refuses", async () => {
    const made = await fake({ features: multiqueue, config: { maxVirtqueuePairs: 4 } });
    made.device.answer = ({ class: type }) => (type === 4 ? 1 : 0);
    await made.net.up();
    expect(made.net.queuePairs).toBe(1);
    expect(made.lines).toContain(
      "cannot set active queue pairs to 4, falling back to 1 queue pair",
    );
  });

  it.each([0, 0x8001, 0x8000])("are one when the device says %i", async (maxVirtqueuePairs) => {
    const made = await running({ features: multiqueue, config: { maxVirtqueuePairs } });
    expect(made.device.negotiated.has(NetFeature.MQ)).toBe(false);
    expect(made.device.drivers).toHaveLength(3);
    expect(made.lines.join()).toContain(`max_virtqueue_pairs value`);
  });

  it("are enabled at every init, the first alone used before [NET-MQ-3] [NET-MQ-4]", async () => {
    const made = await running({ features: multiqueue, config: { maxVirtqueuePairs: 2 } });
    await made.net.down();
    expect(made.net.queuePairs).toBe(1);
    await made.net.up();
    expect(commands(made).filter(([type]) => type === 4)).toEqual([
      [4, 0, 2, 0],
      [4, 0, 2, 0],
    ]);
  });
});

describe("guest offloads", () => {
  const offloads = [
    ...usual,
    NetFeature.GUEST_CSUM,
    NetFeature.GUEST_TSO4,
    NetFeature.GUEST_TSO6,
    NetFeature.CTRL_GUEST_OFFLOADS,
  ];

  it("are switched by command where that was negotiated [NET-OFFLOAD-1]", async () => {
    const made = await running({ features: offloads });
    commands(made);
    const { reinits } = made.device;
    await made.net.setCapability(InterfaceCapability.LRO, false);
    expect(commands(made)).toEqual([[5, 0, 2, 0, 0, 0, 0, 0, 0, 0]]);
    await made.net.setCapability(InterfaceCapability.LRO, true);
    expect(commands(made)).toEqual([[5, 0, 0x82, 1, 0, 0, 0, 0, 0, 0]]);
    expect(made.device.reinits).toBe(reinits);
  });

  it("are negotiated anew where it was not, or where the device refuses", async () => {
    const made = await running({
      features: offloads.filter((bit) => bit !== NetFeature.CTRL_GUEST_OFFLOADS),
    });
    await made.net.setCapability(InterfaceCapability.RXCSUM, false);
    expect(made.device.negotiated.has(NetFeature.GUEST_CSUM)).toBe(false);
    expect(made.device.negotiated.has(NetFeature.GUEST_TSO4)).toBe(false);
    expect(made.net.running).toBe(true);
    const other = await running({ features: offloads });
    other.device.answer = ({ class: type }) => (type === 5 ? 1 : 0);
    await other.net.setCapability(InterfaceCapability.LRO, false);
    expect(other.device.negotiated.has(NetFeature.GUEST_TSO4)).toBe(false);
    expect(other.lines).toContain("cannot update Rx features");
  });
});

describe("coalescing", () => {
  it("is set by command, at each init again [NET-COAL-2]", async () => {
    const made = await running({ features: [...usual, NetFeature.NOTF_COAL] });
    commands(made);
    await made.net.setCoalescing("receive", { maxPackets: 16, maxMicroseconds: 300 });
    expect(commands(made)).toEqual([[6, 1, 16, 0, 0, 0, 0x2c, 1, 0, 0]]);
    await made.net.down();
    await made.net.up();
    expect(commands(made)).toContainEqual([6, 1, 16, 0, 0, 0, 0x2c, 1, 0, 0]);
    const without = await running();
    await expect(
      without.net.setCoalescing("transmit", { maxPackets: 1, maxMicroseconds: 0 }),
    ).rejects.toThrow(expect.objectContaining({ code: "UNSUPPORTED" }));
  });
});

describe("features", () => {
  it("are asked for when offered [NET-CFG-2] [NET-CFG-7] [NET-TX-44]", async () => {
    const made = await fake({
      features: [...usual, NetFeature.MTU, NetFeature.GUEST_HDRLEN, NetFeature.STANDBY],
      config: { mtu: 1500 },
    });
    const has = (bit: NetFeature): boolean => made.device.negotiated.has(bit as NetFeature.MAC);
    expect([NetFeature.MAC, NetFeature.MTU, NetFeature.GUEST_HDRLEN].map(has)).toEqual([
      true,
      true,
      true,
    ]);
    expect(has(NetFeature.STANDBY)).toBe(false);
  });

  it("are not asked for when docs/clauses.md calls them not implemented", async () => {
    const [deviceStats, hashTunnel, vqNotfCoal, rssContext, ipsec] = [50, 51, 52, 64, 70];
    const tunnels = [65, 66, 67, 68];
    const outNetHeader = 69;
    const without = [
      deviceStats,
      hashTunnel,
      vqNotfCoal,
      rssContext,
      ...tunnels,
      outNetHeader,
      ipsec,
    ];
    const made = await fake({ features: [...usual, ...without] as NetFeature[] });
    for (const bit of [...without, ReservedFeature.ADMIN_VQ] as NetFeature[])
      expect([bit, made.device.negotiated.has(bit as NetFeature.MAC)]).toEqual([bit, false]);
  });

  it("go by the tunables", async () => {
    const all = [
      ...usual,
      NetFeature.CSUM,
      NetFeature.GUEST_CSUM,
      NetFeature.HOST_TSO4,
      NetFeature.GUEST_TSO4,
    ];
    const capabilities = async (driver: object): Promise<string[]> => {
      const { net } = await fake({ features: all, driver });
      return ["TXCSUM", "RXCSUM", "TSO4", "LRO"].filter((name) =>
        net.capabilities.has(InterfaceCapability[name as "LRO"]),
      );
    };
    expect(await capabilities({})).toEqual(["TXCSUM", "RXCSUM", "TSO4", "LRO"]);
    expect(await capabilities({ csumDisable: true })).toEqual([]);
    expect(await capabilities({ tsoDisable: true })).toEqual(["TXCSUM", "RXCSUM", "LRO"]);
    expect(await capabilities({ lroDisable: true })).toEqual(["TXCSUM", "RXCSUM", "TSO4"]);
  });

  it("leave LRO out without merging and indirect descriptors", async () => {
    const made = await fake({
      features: [NetFeature.GUEST_CSUM, NetFeature.GUEST_TSO4],
    });
    expect(made.device.negotiated.has(NetFeature.GUEST_TSO4)).toBe(false);
    expect(made.lines).toContain(
      "LRO disabled due to both mergeable buffers and indirect descriptors not negotiated",
    );
    expect(made.device.negotiated.has(ReservedFeature.VERSION_1)).toBe(true);
  });
});
