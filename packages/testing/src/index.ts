export { pairwise, product } from "./combinations.js";
export { transmit } from "./transmit.js";
export { virtualTime } from "./virtual-time.js";
