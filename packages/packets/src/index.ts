export {
  BROADCAST_MAC,
  formatIpv4,
  formatIpv6,
  formatMac,
  IPV4_SIZE,
  IPV6_SIZE,
  parseIpv4,
  parseIpv6,
  parseMac,
} from "./addresses.js";
export { type Arp, ArpOperation, arp, parseArp } from "./arp.js";
export { complete, pseudoSum4, pseudoSum6, sum } from "./checksum.js";
export {
  type DhcpMessage,
  DhcpMessageType,
  DhcpOption,
  DhcpPort,
  dhcp,
  parseDhcp,
} from "./dhcp.js";
export { type Echo, echo, parseEcho } from "./echo.js";
export {
  ETHERNET_HEADER_SIZE,
  EtherType,
  Headers,
  IPV4_HEADER_SIZE,
  IPV6_HEADER_SIZE,
  IpProtocol,
  TCP_HEADER_SIZE,
  TcpFlag,
  UDP_HEADER_SIZE,
  VLAN_TAG_SIZE,
} from "./headers.js";
export {
  multicastMac,
  type NeighborAdvertisement,
  type NeighborMessage,
  type NeighborSolicitation,
  neighbor,
  type Prefix,
  parseNeighbor,
  type RouterAdvertisement,
  type RouterSolicitation,
  solicitedNode,
} from "./neighbor.js";
export {
  type EthernetHeader,
  ethernet,
  type IpHeader,
  type IpPath,
  ipv4,
  ipv6,
  type TcpHeader,
  tcp,
  type UdpHeader,
  udp,
} from "./packet.js";
export { type PcapFrame, readPcap } from "./pcap-reader.js";
export { PcapngWriter } from "./pcapng.js";
export { verify } from "./verify.js";
export { get16, get32, put16, put32 } from "./words.js";
