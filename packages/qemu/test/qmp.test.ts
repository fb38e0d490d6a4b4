import { VirtioFault } from "@virtio/core";
import { QmpClient, type QmpOptions } from "@virtio/qemu";
import { describe, expect, it } from "vitest";
import { FakeSocket, settle } from "./support/fake-socket.js";

const GREETING =
  '{"QMP":{"version":{"qemu":{"major":7,"minor":2,"micro":22}},"capabilities":[]}}\n';

function connect(options: Partial<QmpOptions> = {}) {
  const socket = new FakeSocket();
  const failures: VirtioFault[] = [];
  const qmp = new QmpClient(socket, {
    onFailure: (fault) => failures.push(fault),
    onEnd: () => {},
    ...options,
  });
  return { socket, qmp, failures };
}

describe("QMP", () => {
  it("waits for the greeting, then enters command mode", async () => {
    const { socket, qmp } = connect();
    const version = qmp.negotiate(1_000);
    await settle();
    expect(socket.writes).toEqual([]);
    socket.say(GREETING);
    await settle();
    expect(socket.writes.map((text) => JSON.parse(text))).toEqual([
      { execute: "qmp_capabilities", arguments: {}, id: 1 },
    ]);
    socket.say('{"return":{},"id":1}\n');
    expect(await version).toBe("7.2.22");
  });

  it("takes a greeting that came before anybody asked", async () => {
    const { socket, qmp } = connect();
    socket.say(GREETING);
    await settle();
    socket.onWrite = () => socket.say('{"return":{},"id":1}\n');
    expect(await qmp.negotiate(1_000)).toBe("7.2.22");
  });

  it("matches replies by id and passes arguments and results on", async () => {
    const { socket, qmp } = connect();
    const first = qmp.execute("query-block");
    const second = qmp.execute("block_resize", { "node-name": "a\nb", size: 4096 });
    expect(socket.writes.map((text) => JSON.parse(text))).toEqual([
      { execute: "query-block", arguments: {}, id: 1 },
      { execute: "block_resize", arguments: { "node-name": "a\nb", size: 4096 }, id: 2 },
    ]);
    expect(socket.writes.every((text) => text.indexOf("\n") === text.length - 1)).toBe(true);
    socket.say('{"return":{},"id":2}\n{"return":[1],"id":1}\n');
    expect(await Promise.all([first, second])).toEqual([[1], {}]);
  });

  it("rejects with QEMU's words", async () => {
    const { socket, qmp } = connect();
    const call = qmp.execute("device_del", { id: "x" });
    socket.say(`{"error":{"class":"DeviceNotFound","desc":"Device 'x' not found"},"id":1}\n`);
    await expect(call).rejects.toMatchObject({
      code: "IO",
      message: "QMP device_del: Device 'x' not found (DeviceNotFound)",
    });
  });

  it("tells events to those who listen, for as long as they do", async () => {
    const { socket, qmp } = connect();
    const seen: unknown[] = [];
    const off = qmp.on("RESET", ({ data }) => seen.push(data));
    const next = qmp.next("STOP", 1_000);
    socket.say('{"event":"RESET","data":{"guest":false},"timestamp":{}}\n{"event":"STOP"}\n');
    expect(await next).toEqual({ event: "STOP", data: {} });
    off();
    socket.say('{"event":"RESET"}\n');
    await settle();
    expect(seen).toEqual([{ guest: false }]);
  });

  it("waits for the event that is wanted among those of a name", async () => {
    const { socket, qmp } = connect();
    const next = qmp.next("DEVICE_DELETED", 1_000, ({ data }) => data["device"] === "blk1");
    for (const device of ["blk0", "blk1", "blk2"])
      socket.say(`${JSON.stringify({ event: "DEVICE_DELETED", data: { device } })}\n`);
    expect((await next).data).toEqual({ device: "blk1" });
  });

  it("bounds the wait for an event", async () => {
    const { qmp, failures } = connect();
    await expect(qmp.next("STOP", 5)).rejects.toThrow("no QMP event STOP within 5 ms");
    expect(failures).toEqual([]);
  });

  it.each([
    ["not json\n", "a line that is not JSON"],
    ["[]\n", "a line that is no object"],
    ['{"return":{},"id":7}\n', "a reply to nothing that was asked"],
    ['{"error":{"class":"GenericError","desc":"no"}}\n', "a reply to nothing that was asked"],
    [`${GREETING}${GREETING}`, "a reply to nothing that was asked"],
  ])("closes the machine when QEMU sends %j", async (text, what) => {
    const { socket, qmp, failures } = connect();
    const call = qmp.execute("query-block");
    const event = qmp.next("STOP");
    socket.say(text);
    await expect(call).rejects.toMatchObject({ code: "CLOSED" });
    await expect(event).rejects.toMatchObject({ code: "CLOSED" });
    expect(failures[0]).toMatchObject({
      code: "DEVICE_MISBEHAVED",
      message: expect.stringContaining(what),
    });
  });

  it("closes the machine when an answer is overdue", async () => {
    const { qmp, failures } = connect({ timeoutMs: 10 });
    await expect(qmp.execute("query-block")).rejects.toMatchObject({ code: "TIMED_OUT" });
    expect(failures).toMatchObject([{ code: "TIMED_OUT" }]);
    await expect(qmp.execute("query-block")).rejects.toMatchObject({ code: "CLOSED" });
  });

  it("rejects the handshake when the connection ends during it", async () => {
    const { qmp } = connect();
    const version = qmp.negotiate(1_000);
    qmp.close(new VirtioFault("CLOSED", "QEMU (pid 1) ended: exit status 1"));
    await expect(version).rejects.toThrow("QEMU (pid 1) ended: exit status 1");
  });
});
