import {
  DeviceStatus,
  DeviceType,
  type Machine,
  type PciBus,
  ReservedFeature,
  SysctlTree,
  VirtioFault,
} from "@virtio/core";
import { CommonConfig, PciCapability, PciRegister } from "@virtio/core/pci";
import { embedded, RuleBook } from "@virtio/hypervisor";
import { afterEach, describe, expect, it } from "vitest";
import { attach, type PciNode, probe } from "../src/index.js";
import { type NullDevice, nullDriver } from "./null-driver.js";
import { type Lies, pciBus, tampered } from "./tampered-bus.js";

const rules = new RuleBook();
afterEach(() => {
  expect(rules.violations.splice(0)).toEqual([]);
});

async function machineOf(spec = "blk,size=1m", seed?: number) {
  return embedded({ devices: [spec], rules, ...(seed === undefined ? {} : { seed }) });
}

async function only(nodes: Promise<readonly PciNode[]>): Promise<PciNode> {
  const [node] = await nodes;
  if (node === undefined) throw new Error("no device");
  return node;
}

async function attached(spec?: string): Promise<{ null0: NullDevice; close: () => Promise<void> }> {
  const machine = await machineOf(spec);
  return {
    null0: await attach(await only(probe(pciBus(machine))), nullDriver()),
    close: () => machine.close(),
  };
}

/** Where the capability of the device structure lies in the first function's configuration space. */
async function deviceCapability(machine: Machine): Promise<number> {
  const [fn] = await pciBus(machine).functions();
  if (fn === undefined) throw new Error("no function");
  let at = await fn.read(PciRegister.CAPABILITIES, 1);
  while ((await fn.read(at, 1)) !== PciCapability.VENDOR || (await fn.read(at + 3, 1)) !== 4)
    at = await fn.read(at + 1, 1);
  return at;
}

/** The fault of an attach to a device that lies. Virtual time, so that time-outs take none. */
async function failure(lies: Lies): Promise<VirtioFault> {
  const machine = await embedded({ devices: ["blk,size=1m"], seed: 7 });
  const node = await only(probe(tampered(machine, lies)));
  const error = await attach(node, nullDriver()).then(
    () => null,
    (reason: unknown) => reason,
  );
  await machine.close();
  if (!(error instanceof VirtioFault)) throw new Error(`attach ended with ${String(error)}`);
  return error;
}

describe("attach", () => {
  it("runs a driver's whole life, and again after it detached", async () => {
    const machine = await machineOf();
    const node = await only(probe(pciBus(machine)));
    const free = machine.memory.available;
    for (let life = 0; life < 3; life++) {
      const null0 = await attach(node, nullDriver());
      expect(await null0.flush()).toBe(0);
      await null0.detach();
      expect(machine.memory.available).toBe(free);
    }
    await machine.close();
  });

  it("negotiates only what was offered: no packed ring of a device without one, never SR-IOV", async () => {
    const { null0, close } = await attached();
    expect(null0.features.has(ReservedFeature.VERSION_1)).toBe(true);
    expect(null0.features.has(ReservedFeature.RING_PACKED)).toBe(false);
    expect(null0.features.has(ReservedFeature.SR_IOV)).toBe(false);
    await close();
  });

  const everything =
    "blk,size=1m,packed=on,in_order=on,notification_data=on,access_platform=on,order_platform=on,notif_config_data=on";

  it("accepts ACCESS_PLATFORM, RING_PACKED and ORDER_PLATFORM when they are offered [RESFEAT-3] [RESFEAT-6] [RESFEAT-7] [RESFEAT-13]", async () => {
    const { null0, close } = await attached(everything);
    const { features } = null0;
    for (const bit of [
      ReservedFeature.ACCESS_PLATFORM,
      ReservedFeature.RING_PACKED,
      ReservedFeature.ORDER_PLATFORM,
      ReservedFeature.IN_ORDER,
      ReservedFeature.NOTIFICATION_DATA,
      ReservedFeature.NOTIF_CONFIG_DATA,
      ReservedFeature.RING_RESET,
      ReservedFeature.SUSPEND,
    ])
      expect(features.has(bit)).toBe(true);
    for (let i = 0; i < 600; i++) expect(await null0.flush()).toBe(0);
    await close();
  });

  for (const [data, clause, format] of [
    ["off", "PCI-NOTIFY-5", "off"],
    ["off", "PCI-NOTIFY-5", "on"],
    ["on", "PCI-NOTIFY-6", "off"],
    ["on", "PCI-NOTIFY-6", "on"],
  ] as const)
    it(`names a queue in its doorbell as the device says, notification_data=${data}, packed=${format} [${clause}]`, async () => {
      const before = rules.kept(clause);
      const { null0, close } = await attached(
        `blk,size=1m,notif_config_data=on,notification_data=${data},packed=${format}`,
      );
      for (let i = 0; i < 300; i++) expect(await null0.flush()).toBe(0);
      await close();
      expect(rules.kept(clause)).toBeGreaterThan(before);
    });

  it("accepts no unknown bit of a device that offers all of them, and works [FEAT-4] [FEAT-5] [FEAT-8] [RESFEAT-10]", async () => {
    const machine = await embedded({ devices: [everything] });
    const written: number[] = [];
    const bus = tampered(machine, {
      read: (offset) => (offset === CommonConfig.DEVICE_FEATURE ? 0xffff_ffff : undefined),
      write: (offset, value) => {
        if (offset === CommonConfig.DRIVER_FEATURE) written.push(value);
        return true;
      },
    });
    const null0 = await attach(await only(probe(bus)), nullDriver());
    const high = [32, 33, 34, 35, 36, 38, 39, 40, 43].reduce(
      (word, bit) => word | (1 << (bit - 32)),
      0,
    );
    expect(written).toEqual([1 << 29, high, 0, 0]);
    expect(await null0.flush()).toBe(0);
    await machine.close();
  });

  it("sets FAILED and resets when a driver's attach throws, and frees the device for another try [FEAT-7] [INIT-11] [INIT-12]", async () => {
    const machine = await machineOf();
    const statuses: number[] = [];
    const bus = tampered(machine, {
      write: (offset, value) => {
        if (offset === CommonConfig.DEVICE_STATUS) statuses.push(value);
        return true;
      },
    });
    const node = await only(probe(bus));
    const free = machine.memory.available;
    const boom = new Error("boom");
    await expect(
      attach(
        node,
        nullDriver(() => Promise.reject(boom)),
      ),
    ).rejects.toBe(boom);
    expect(statuses).toEqual([0, 1, 3, 11, 11 | DeviceStatus.FAILED, 0, DeviceStatus.ACKNOWLEDGE]);
    expect(machine.memory.available).toBe(free);
    expect(await (await attach(node, nullDriver())).flush()).toBe(0);
    await machine.close();
  });

  it("refuses a second driver, and a driver of another type", async () => {
    const machine = await machineOf();
    const node = await only(probe(pciBus(machine)));
    await attach(node, nullDriver());
    await expect(attach(node, nullDriver())).rejects.toMatchObject({ code: "BUSY" });
    await expect(attach(node, { ...nullDriver(), types: [DeviceType.NET] })).rejects.toMatchObject({
      code: "INVALID",
    });
    await machine.close();
  });

  it("waits for a slow reset, touching nothing else [RESET-1] [PCI-COMMON-5]", async () => {
    const machine = await machineOf(undefined, 3);
    let slow = 3;
    let touched = false;
    let resetting = false;
    const bus = tampered(machine, {
      read: (offset, value) => {
        if (offset !== CommonConfig.DEVICE_STATUS || !resetting) return undefined;
        slow -= 1;
        if (slow > 0) return 15;
        resetting = false;
        return value;
      },
      write: (offset, value) => {
        touched ||= resetting;
        resetting ||= offset === CommonConfig.DEVICE_STATUS && value === 0;
        return true;
      },
    });
    const null0 = await attach(await only(probe(bus)), nullDriver());
    expect([slow, touched]).toEqual([0, false]);
    slow = 3;
    await null0.device.reset();
    expect([slow, touched]).toEqual([0, false]);
    await machine.close();
  });

  it("gives up on a device that never resets", async () => {
    const fault = await failure({
      read: (offset) => (offset === CommonConfig.DEVICE_STATUS ? 1 : undefined),
    });
    expect(fault).toMatchObject({ code: "TIMED_OUT", errno: "ETIMEDOUT" });
    expect(fault.message).toBe("null0: reset is not done after 5000 ms [virtio 1.4 §2.4.2]");
  });

  it("gives up when FEATURES_OK does not stay set", async () => {
    const fault = await failure({
      read: (offset, value) =>
        offset === CommonConfig.DEVICE_STATUS ? value & ~DeviceStatus.FEATURES_OK : undefined,
    });
    expect(fault).toMatchObject({ code: "NEGOTIATION" });
  });

  it("gives up without VERSION_1", async () => {
    const fault = await failure({
      read: (offset) => (offset === CommonConfig.DEVICE_FEATURE ? 0 : undefined),
    });
    expect(fault.message).toBe("null0: the device does not offer VERSION_1 [virtio 1.4 §6.1]");
  });

  const nonsense: readonly (readonly [
    what: string,
    register: CommonConfig,
    value: number,
    says: RegExp,
  ])[] = [
    ["no queues", CommonConfig.NUM_QUEUES, 0, /requested virtqueue count 1 exceeds max 0/],
    [
      "a queue of size 0",
      CommonConfig.QUEUE_SIZE,
      0,
      /virtqueue 0 \(null0 request\) does not exist/,
    ],
    ["a queue of 3 descriptors", CommonConfig.QUEUE_SIZE, 3, /size is not a power of 2: 3/],
    [
      "a doorbell outside its region",
      CommonConfig.QUEUE_NOTIFY_OFF,
      0x8000,
      /doorbell of virtqueue 0 at 131072 of 4096 bytes/,
    ],
  ];
  for (const [what, register, value, says] of nonsense)
    it(`refuses ${what}`, async () => {
      const fault = await failure({ read: (offset) => (offset === register ? value : undefined) });
      expect(fault.message).toMatch(says);
    });

  it("refuses a notify multiplier that puts doorbells outside, and takes one of 0", async () => {
    const machine = await embedded({ devices: ["blk,size=1m"], seed: 7 });
    // The capability of the notify structure follows that of the device structure.
    const [fn] = await pciBus(machine).functions();
    const at = (await fn?.read((await deviceCapability(machine)) + 1, 1)) ?? 0;
    const multiplied = (multiplier: number, lies: Lies = {}): PciBus =>
      tampered(machine, {
        ...lies,
        bytes: new Map(
          [0, 8, 16, 24].map((shift, i) => [at + 16 + i, (multiplier >>> shift) & 255]),
        ),
      });
    const null0 = await attach(await only(probe(multiplied(0))), nullDriver());
    expect(await null0.flush()).toBe(0);
    await null0.detach();
    const one: Lies = {
      read: (offset) => (offset === CommonConfig.QUEUE_NOTIFY_OFF ? 1 : undefined),
    };
    for (const [multiplier, offset] of [
      [0x1000, 4096],
      [0xffff_fffe, 4294967294],
      [1, 1],
    ])
      await expect(
        attach(await only(probe(multiplied(multiplier ?? 0, one))), nullDriver()),
      ).rejects.toThrow(`doorbell of virtqueue 0 at ${offset} of 4096 bytes`);
    await machine.close();
  });

  it("gives up on a queue whose reset never ends", async () => {
    const machine = await embedded({ devices: ["blk,size=1m"], seed: 7 });
    const bus = tampered(machine, {
      read: (offset) => (offset === CommonConfig.QUEUE_RESET ? 1 : undefined),
    });
    const null0 = await attach(await only(probe(bus)), nullDriver());
    await expect(null0.device.resetQueue(null0.queue)).rejects.toThrow(
      "reset queue 0 is not done after 5000 ms [virtio 1.4 §2.6.1.1.2]",
    );
    await machine.close();
  });

  it("bounds what a device can make it allocate", async () => {
    const machine = await machineOf();
    const bus = tampered(machine, {
      read: (offset) => (offset === CommonConfig.QUEUE_SIZE ? 32768 : undefined),
    });
    const null0 = await attach(await only(probe(bus)), nullDriver());
    expect(null0.queue.size).toBe(1024);
    rules.violations.length = 0;
    await machine.close();
  });

  it("fails requests with CLOSED when the machine is closed under it", async () => {
    const { null0, close } = await attached();
    const flushing = null0.flush();
    await close();
    await expect(flushing).rejects.toMatchObject({ code: "CLOSED" });
  });

  it("fails requests when the device sets DEVICE_NEEDS_RESET, says so once, and works again after reinit [STATUS-4]", async () => {
    // Its doorbells are lost; then its ISR shows a configuration change, its status DEVICE_NEEDS_RESET.
    const machine = await embedded({
      devices: [
        "blk,size=1m,vectors=0",
        "blk,size=1m,vectors=0",
        "blk,size=1m,vectors=0",
        "blk,size=1m,vectors=0",
        "blk,size=1m,vectors=0",
      ],
    });
    let stuck = false;
    const bus = tampered(machine, {
      read: (offset, value) => {
        if (offset === CommonConfig.DEVICE_STATUS && stuck)
          return value === 0 ? 0 : value | DeviceStatus.DEVICE_NEEDS_RESET;
        return offset === 0x1000 && stuck ? 2 : undefined;
      },
      write: (offset) => !(stuck && offset >= 0x3000),
    });
    const nodes = await probe(bus);
    const null0 = await attach(nodes[0] as PciNode, nullDriver());
    // Shares the line, and raises it.
    const other = await attach(nodes[4] as PciNode, nullDriver());
    let told = 0;
    null0.device.onNeedsReset = () => {
      told += 1;
    };
    stuck = true;
    const flushing = null0.flush();
    expect(await other.flush()).toBe(0);
    await expect(flushing).rejects.toMatchObject({ code: "NEEDS_RESET", errno: "EIO" });
    expect(await other.flush()).toBe(0);
    expect(told).toBe(1);
    stuck = false;
    await null0.device.reinit();
    null0.queue.enableInterrupt();
    expect(await null0.flush()).toBe(0);
    await machine.close();
  });

  it("takes one consistent generation of its configuration [CONFIG-1] [CONFIG-2]", async () => {
    const machine = await machineOf();
    let generation = 0;
    let reads = 0;
    const bus = tampered(machine, {
      read: (offset, value) => {
        if (offset === CommonConfig.CONFIG_GENERATION)
          return reads++ < 5 ? generation++ : generation;
        return offset === 0x2000 ? generation : offset === 0x2004 ? 0 : value;
      },
    });
    const null0 = await attach(await only(probe(bus)), nullDriver());
    const before = generation;
    expect(await null0.device.config.read(0, 8)).toBeGreaterThanOrEqual(before);
    expect(reads).toBeGreaterThan(2);
    await machine.close();
  });

  it("gives up on configuration that never stays, and refuses what is no safe number or not there [CONFIG-5]", async () => {
    const machine = await machineOf();
    let generation = 0;
    let storm = false;
    const bus = tampered(machine, {
      read: (offset) => {
        if (offset === CommonConfig.CONFIG_GENERATION && storm) return generation++ & 0xff;
        return offset === 0x2004 ? 0xffff_ffff : undefined;
      },
    });
    const null0 = await attach(await only(probe(bus)), nullDriver());
    await expect(null0.device.config.read(0, 8)).rejects.toMatchObject({
      code: "DEVICE_MISBEHAVED",
    });
    storm = true;
    await expect(null0.device.config.readAll({ a: [0, 4] })).rejects.toMatchObject({
      code: "TIMED_OUT",
    });
    await expect(null0.device.config.read(96, 4)).rejects.toMatchObject({ code: "UNSUPPORTED" });
    await machine.close();
  });

  it("drives a device with more configuration than anybody has use for [CONFIG-4]", async () => {
    const machine = await machineOf();
    // The length of the device structure, capability at 0x60: all of the BAR, and of ten megabytes.
    for (const length of [0x2000, 10 << 20]) {
      const bytes = new Map([0, 8, 16, 24].map((shift, i) => [i, (length >>> shift) & 0xff]));
      const at = await deviceCapability(machine);
      const bus = tampered(machine, {
        bytes: new Map([...bytes].map(([i, byte]) => [at + 12 + i, byte])),
      });
      const null0 = await attach(await only(probe(bus)), nullDriver());
      expect(null0.device.config.length).toBe(0x2000);
      expect(await null0.device.config.read(0, 8)).toBe(2048);
      expect(await null0.flush()).toBe(0);
      await null0.detach();
    }
    await machine.close();
  });

  for (const spec of ["blk,size=1m", "blk,size=1m,packed=on,queue-size=3"])
    it(`resets one queue and goes on, and reinitializes the whole device (${spec}) [VQRESET-1] [PCI-COMMON-7] [VQREENABLE-1]`, async () => {
      const { null0, close } = await attached(spec);
      expect(await null0.flush()).toBe(0);
      await null0.device.resetQueue(null0.queue);
      for (const clause of ["VQRESET-1", "PCI-COMMON-7", "VQREENABLE-1"])
        expect(rules.kept(clause)).toBeGreaterThan(0);
      null0.queue.enableInterrupt();
      expect(await null0.flush()).toBe(0);
      await null0.device.reinit();
      null0.queue.enableInterrupt();
      expect(await null0.flush()).toBe(0);
      await close();
    });

  it("publishes features and counters", async () => {
    const machine = await machineOf();
    const sysctl = new SysctlTree();
    const node = (name: string) => sysctl.node(name, "");
    const null0 = await attach(await only(probe(pciBus(machine))), nullDriver(), {
      sysctl: node("dev.null.0"),
      transport: {
        name: "virtio_pci0",
        unit: 0,
        sysctl: node("dev.virtio_pci.0"),
        tunables: { number: () => 0 },
        log: () => {},
        verbose: () => {},
      },
    });
    await null0.flush();
    const value = (name: string): number | string | undefined => sysctl.find(name)[0]?.read();
    expect(value("dev.virtio_pci.0.nvqs")).toBe(1);
    expect(value("dev.virtio_pci.0.negotiated_features")).toBe(
      "0x90120000000 <Suspend,RingReset,Version1,RingEventIdx>",
    );
    expect([
      value("dev.null.0.vq0.kicks"),
      value("dev.null.0.vq0.buffers"),
      value("dev.null.0.vq0.free"),
    ]).toEqual([1, 1, 256]);
    await machine.close();
  });
});

describe("interrupts", () => {
  const kinds: readonly (readonly [spec: string, disable: number, kind: string])[] = [
    ["blk,size=1m,vectors=2", 0, "msix"],
    ["blk,size=1m,vectors=1", 0, "intx"],
    ["blk,size=1m,vectors=0", 0, "intx"],
    ["blk,size=1m,vectors=8", 1, "intx"],
  ];
  for (const [spec, disable, kind] of kinds)
    it(`uses ${kind} for ${spec} with disable_msix=${disable}, and counts it [PCI-MSIX-1]`, async () => {
      const machine = await machineOf(spec);
      const silent = { sysctl: new SysctlTree(), log: () => {}, verbose: () => {} };
      const node = await only(probe(pciBus(machine)));
      const null0 = await attach(node, nullDriver(), {
        transport: { name: "virtio_pci0", unit: 0, tunables: { number: () => disable }, ...silent },
      });
      expect(null0.kind).toBe(kind);
      for (let i = 0; i < 3; i++) expect(await null0.flush()).toBe(0);
      const counted = machine.interrupts().filter(({ count }) => count > 0);
      expect(counted.map(({ names, count }) => [names, count])).toEqual([
        [kind === "msix" ? ["null0 request"] : ["virtio_pci0"], 3],
      ]);
      await null0.detach();
      await machine.close();
    });

  it("falls back when the device refuses a vector [PCI-MSIX-6]", async () => {
    const machine = await embedded({ devices: ["blk,size=1m"] });
    const bus = tampered(machine, {
      read: (offset) => (offset === CommonConfig.QUEUE_MSIX_VECTOR ? 0xffff : undefined),
    });
    const null0 = await attach(await only(probe(bus)), nullDriver());
    expect(null0.kind).toBe("intx");
    expect(await null0.flush()).toBe(0);
    await machine.close();
  });

  it("serves a configuration change and used buffers that one interrupt signals [PCI-CFGCHG-1]", async () => {
    const machine = await embedded({ devices: ["blk,size=1m,vectors=0"] });
    const bus = tampered(machine, {
      read: (offset, value) => (offset === 0x1000 && value === 1 ? 3 : undefined),
    });
    const null0 = await attach(await only(probe(bus)), nullDriver());
    let changes = 0;
    null0.device.onConfigChange = () => {
      changes += 1;
    };
    expect(await null0.flush()).toBe(0);
    expect(changes).toBe(1);
    await machine.close();
  });

  it("serves several devices on one line until it is low", async () => {
    // Slots 1, 5 and 9 share a line.
    const machine = await embedded({
      devices: Array.from({ length: 9 }, () => "blk,size=1m,vectors=0"),
      rules,
    });
    const nodes = await probe(pciBus(machine));
    const shared = await Promise.all(
      [0, 4, 8].map((i) => attach(nodes[i] as PciNode, nullDriver())),
    );
    expect(new Set(machine.interrupts().map(({ irq }) => irq))).toEqual(new Set(["irq21"]));
    for (let i = 0; i < 20; i++)
      expect(await Promise.all(shared.map((null0) => null0.flush()))).toEqual([0, 0, 0]);
    await machine.close();
  });
});
