// The words of the network device: virtio 1.4 §5.1. Offsets and sizes in bytes.

import type { ConfigField } from "../device.js";

/** Feature bits (virtio 1.4 §5.1.3). Bit numbers. */
export enum NetFeature {
  /** the device takes frames whose checksum is partial */
  CSUM = 0,
  /** the driver takes frames whose checksum is partial */
  GUEST_CSUM = 1,
  /** offloads for received frames can be switched */
  CTRL_GUEST_OFFLOADS = 2,
  /** `mtu` is valid */
  MTU = 3,
  /** `mac` is valid */
  MAC = 5,
  /** §5.1.3.2, legacy interface only: any segmentation for the driver */
  GSO = 6,
  /** the driver takes TCP over IPv4 not segmented */
  GUEST_TSO4 = 7,
  /** the driver takes TCP over IPv6 not segmented */
  GUEST_TSO6 = 8,
  /** the driver takes TSO with ECN */
  GUEST_ECN = 9,
  /** the driver takes UDP not fragmented */
  GUEST_UFO = 10,
  /** the device takes TCP over IPv4 not segmented */
  HOST_TSO4 = 11,
  /** the device takes TCP over IPv6 not segmented */
  HOST_TSO6 = 12,
  /** the device takes TSO with ECN */
  HOST_ECN = 13,
  /** the device takes UDP not fragmented */
  HOST_UFO = 14,
  /** a received frame may take several buffers */
  MRG_RXBUF = 15,
  /** `status` is valid */
  STATUS = 16,
  /** control queue */
  CTRL_VQ = 17,
  /** control of receive modes */
  CTRL_RX = 18,
  /** filtering by VLAN */
  CTRL_VLAN = 19,
  /** control of more receive modes */
  CTRL_RX_EXTRA = 20,
  /** the driver can announce itself */
  GUEST_ANNOUNCE = 21,
  /** several pairs of queues */
  MQ = 22,
  /** the MAC address can be set by command */
  CTRL_MAC_ADDR = 23,
  /** a hash of inner headers */
  HASH_TUNNEL = 51,
  /** coalescing of notifications, each queue for itself */
  VQ_NOTF_COAL = 52,
  /** coalescing of notifications */
  NOTF_COAL = 53,
  /** the driver takes UDP over IPv4 not segmented */
  GUEST_USO4 = 54,
  /** the driver takes UDP over IPv6 not segmented */
  GUEST_USO6 = 55,
  /** the device takes UDP not segmented */
  HOST_USO = 56,
  /** the device reports a hash of each frame */
  HASH_REPORT = 57,
  /** the driver gives the exact length of headers */
  GUEST_HDRLEN = 59,
  /** receive-side scaling */
  RSS = 60,
  /** coalesced segments and duplicate ACKs are reported */
  RSC_EXT = 61,
  /** the device is the standby of another with the same MAC address */
  STANDBY = 62,
  /** `speed` and `duplex` are valid */
  SPEED_DUPLEX = 63,
}

/** Names of the fields of `struct virtio_net_config`. */
export type NetConfigField =
  | "status"
  | "maxVirtqueuePairs"
  | "mtu"
  | "speed"
  | "duplex"
  | "rssMaxKeySize"
  | "rssMaxIndirectionTableLength"
  | "supportedHashTypes";

/** Fields of `struct virtio_net_config` behind its MAC address (virtio 1.4 §5.1.4): offset, width. */
export const NetConfig: Readonly<Record<NetConfigField, ConfigField>> = {
  status: [6, 2],
  maxVirtqueuePairs: [8, 2],
  mtu: [10, 2],
  speed: [12, 4],
  duplex: [16, 1],
  rssMaxKeySize: [17, 1],
  rssMaxIndirectionTableLength: [18, 2],
  supportedHashTypes: [20, 4],
};

/** Bytes of a MAC address; the device's is at offset 0 of its configuration (virtio 1.4 §5.1.4). */
export const MAC_SIZE = 6;
/** Bytes of `struct virtio_net_config` (virtio 1.4 §5.1.4). */
export const NET_CONFIG_SIZE = 28;
/** Most pairs of queues (virtio 1.4 §5.1.4.1). */
export const NET_PAIRS_MAX = 0x8000;

/** Bits of `status` (virtio 1.4 §5.1.4). Values. */
export enum NetStatus {
  LINK_UP = 1,
  /** the driver is to announce itself */
  ANNOUNCE = 2,
}

/** Offsets in `struct virtio_net_hdr`, the header of each frame (virtio 1.4 §5.1.6). */
export enum NetHeader {
  FLAGS = 0,
  GSO_TYPE = 1,
  HDR_LEN = 2,
  GSO_SIZE = 4,
  CSUM_START = 6,
  CSUM_OFFSET = 8,
  NUM_BUFFERS = 10,
  HASH_VALUE = 12,
  HASH_REPORT = 16,
}

/** Bytes of the header (virtio 1.4 §5.1.6.4). */
export const NET_HEADER_SIZE = 12;
/** Bytes of the header with HASH_REPORT (virtio 1.4 §5.1.6.4). */
export const NET_HEADER_HASH_SIZE = 20;
/** Bytes of the header on the legacy interface, without MRG_RXBUF (virtio 1.4 §5.1.6.1). */
export const NET_HEADER_LEGACY_SIZE = 10;

/** Flags of a header (virtio 1.4 §5.1.6). Values. */
export enum NetHeaderFlag {
  /** the checksum is partial: `csum_start` and `csum_offset` are valid */
  NEEDS_CSUM = 1,
  /** the checksum was looked at and is right */
  DATA_VALID = 2,
  /** with RSC_EXT: `csum_start` and `csum_offset` count segments and duplicate ACKs */
  RSC_INFO = 4,
}

/** What a frame is to be cut into, or was put together from (virtio 1.4 §5.1.6): values; ECN is or'ed to the others. */
export enum NetGso {
  NONE = 0,
  TCPV4 = 1,
  UDP = 3,
  TCPV6 = 4,
  UDP_L4 = 5,
  ECN = 0x80,
}

/** Hash types (virtio 1.4 §5.1.6.4.3). Bit numbers; a report is the number plus one. */
export enum NetHash {
  IPV4 = 0,
  TCPV4 = 1,
  UDPV4 = 2,
  IPV6 = 3,
  TCPV6 = 4,
  UDPV6 = 5,
  IP_EX = 6,
  TCP_EX = 7,
  UDP_EX = 8,
}

/** Classes of control commands (virtio 1.4 §5.1.6.5). */
export enum NetControlClass {
  RX = 0,
  MAC = 1,
  VLAN = 2,
  ANNOUNCE = 3,
  MQ = 4,
  GUEST_OFFLOADS = 5,
  NOTF_COAL = 6,
}

/** Commands of class RX: one byte, 0 or 1 (virtio 1.4 §5.1.6.5.1). */
export enum NetControlRx {
  PROMISC = 0,
  ALLMULTI = 1,
  ALLUNI = 2,
  NOMULTI = 3,
  NOUNI = 4,
  NOBCAST = 5,
}

/** Commands of class MAC (virtio 1.4 §5.1.6.5.2). */
export enum NetControlMac {
  /** le32 count, addresses, for unicast and then for multicast */
  TABLE_SET = 0,
  /** 6 bytes */
  ADDR_SET = 1,
}

/** Commands of class VLAN: le16 id (virtio 1.4 §5.1.6.5.3). */
export enum NetControlVlan {
  ADD = 0,
  DEL = 1,
}

/** Commands of class ANNOUNCE (virtio 1.4 §5.1.6.5.4). */
export enum NetControlAnnounce {
  ACK = 0,
}

/** Commands of class MQ (virtio 1.4 §5.1.6.5.5). */
export enum NetControlMq {
  /** le16 */
  VQ_PAIRS_SET = 0,
  RSS_CONFIG = 1,
  HASH_CONFIG = 2,
}

/** Commands of class GUEST_OFFLOADS: le64 of feature bits (virtio 1.4 §5.1.6.5.6). */
export enum NetControlGuestOffloads {
  SET = 0,
}

/** Commands of class NOTF_COAL (virtio 1.4 §5.1.6.5.8). */
export enum NetControlNotfCoal {
  /** le32 max_packets, le32 max_usecs */
  TX_SET = 0,
  RX_SET = 1,
  /** le16 vq_index, le16 reserved, then as above */
  VQ_SET = 2,
  VQ_GET = 3,
}

/** The device's answer to a control command (virtio 1.4 §5.1.6.5). */
export enum NetControlAck {
  OK = 0,
  ERR = 1,
}

/** Most bytes of a frame that is not segmented: 65535 of IP and 14 of Ethernet, and a VLAN tag (virtio 1.4 §5.1.6.3.1). */
export const NET_GSO_FRAME_MAX = 65_553;
