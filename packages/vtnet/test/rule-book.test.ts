// What the rule book sees of a load that does all that vtnet can do: nothing broken, and every rule looked at.
import { InterfaceCapability } from "@virtio/core";
import { type EmbeddedNetOptions, LoopbackBackend, NetPort, RuleBook } from "@virtio/hypervisor";
import { parseMac } from "@virtio/packets";
import { transmit } from "@virtio/testing";
import { beforeAll, describe, expect, it } from "vitest";
import type { VtnetOptions } from "../src/index.js";
import { bench, tcp, tso, until } from "./bench.js";
import { frameOf } from "./fake-device.js";

const address = "52:54:00:12:34:56";
const { gsoType: _, gsoSize: __, ...partial } = tso;

/** Every command, and frames of each kind out and back again, on one device. */
async function load(
  rules: RuleBook,
  options: EmbeddedNetOptions = {},
  driver: VtnetOptions = {},
): Promise<void> {
  const port = new NetPort();
  const { iface } = await bench(
    { ...options, port, backend: new LoopbackBackend() },
    driver,
    rules,
  );
  await iface.setMulticast(["01:00:5e:00:00:01"]);
  await iface.setUnicast(["02:00:00:00:00:01"]);
  await iface.setAllMulticast(true);
  if (iface.capabilities.has(InterfaceCapability.VLAN_HWFILTER)) {
    await iface.setCapability(InterfaceCapability.VLAN_HWFILTER, true);
    await iface.addVlan(4094);
  }
  await iface.up();
  expect(port.activePairs).toBe(options.queues ?? 1);
  expect(port.filter).toMatchObject({
    unicast: [parseMac("02:00:00:00:00:01")],
    multicast: [parseMac("01:00:5e:00:00:01")],
    vlans: iface.capabilities.has(InterfaceCapability.VLAN_HWFILTER) ? [4094] : [],
  });
  if (options.features?.["NOTF_COAL"] === true)
    await iface.setCoalescing("receive", { maxPackets: 1, maxMicroseconds: 0 });
  const { received, transmitted } = port.counters;
  const plain = frameOf(100);
  plain.set(parseMac(address), 6);
  transmit(iface, plain);
  transmit(iface, tcp(600), partial);
  const cuts = iface.capabilities.has(InterfaceCapability.TSO4);
  if (cuts) transmit(iface, tcp(4000), tso);
  await until(
    () =>
      port.counters.transmitted >= transmitted + 2 + Number(cuts) &&
      port.counters.received > received,
  );
  if (iface.capabilities.has(InterfaceCapability.LRO))
    await iface.setCapability(InterfaceCapability.LRO, false);
  if (options.features?.["GUEST_ANNOUNCE"] !== false) {
    const { commands } = port.counters;
    port.announce();
    await until(() => port.counters.commands > commands);
  }
  expect(port.counters.refused).toBe(0);
  await iface.detach();
}

describe("the rule book, after a load that does all that vtnet can do,", () => {
  const rules = new RuleBook();
  beforeAll(async () => {
    await load(rules, { queues: 2, mtu: 1500, features: { NOTF_COAL: true, GUEST_HDRLEN: true } });
    await load(rules, { features: { MRG_RXBUF: false } });
    await load(rules, { features: { MRG_RXBUF: false } }, { lroDisable: true });
    await load(rules, {}, { csumDisable: true });
  });

  it.each([
    ...["NET-CFG-1", "NET-CFG-2", "NET-CFG-3", "NET-CFG-7", "NET-CFG-8", "NET-CFG-9"],
    ...["NET-TX-6", "NET-TX-27"],
    ...["NET-CFG-13", "NET-CFG-14", "NET-TX-1", "NET-TX-2", "NET-TX-3", "NET-TX-4", "NET-TX-7"],
    ...["NET-TX-9", "NET-TX-11", "NET-TX-13", "NET-TX-17", "NET-TX-20", "NET-TX-22", "NET-TX-23"],
    ...["NET-TX-24", "NET-TX-25", "NET-TX-26", "NET-TX-28", "NET-TX-29", "NET-TX-30", "NET-TX-31"],
    ...["NET-TX-32", "NET-TX-33", "NET-TX-34", "NET-TX-35", "NET-TX-42", "NET-TX-43", "NET-TX-44"],
    ...["NET-TX-45", "NET-TX-46", "NET-RXBUF-1", "NET-RXBUF-2", "NET-RXBUF-3", "NET-RXBUF-4"],
    ...["NET-RXBUF-5", "NET-CTRL-RX-1", "NET-CTRL-RX-2", "NET-CTRL-MAC-1", "NET-CTRL-MAC-3"],
    ...["NET-ANNOUNCE-2", "NET-MQ-1", "NET-MQ-2", "NET-MQ-3", "NET-INNERHASH-1", "NET-RSS-1"],
    ...["NET-RSSCTX-1", "NET-OFFLOAD-1", "NET-COAL-2", "NET-COAL-3"],
  ])("has looked, and found it kept [%s]", (clause) => {
    expect(rules.violations).toEqual([]);
    expect(rules.kept(clause)).toBeGreaterThan(0);
  });
});

describe("the rule book, after the same on the legacy interface,", () => {
  const rules = new RuleBook();
  beforeAll(async () => {
    const features = { ANY_LAYOUT: false };
    await load(rules, { legacy: "on", queues: 2, features });
    await load(rules, { legacy: "on", features: { ...features, MRG_RXBUF: false } });
  });

  it.each([
    ...["NET-HDR-LEGACY-1", "NET-CTRL-MAC-LEGACY-1", "NET-VLAN-LEGACY-1", "NET-MQ-LEGACY-1"],
    ...["NET-OFFLOAD-LEGACY-1", "NET-FRAME-LEGACY-1", "NET-FRAME-LEGACY-2", "NET-FRAME-LEGACY-3"],
    ...["NET-FRAME-LEGACY-4", "NET-FRAME-LEGACY-5"],
  ])("has looked, and found it kept [%s]", (clause) => {
    expect(rules.violations).toEqual([]);
    expect(rules.kept(clause)).toBeGreaterThan(0);
  });
});
