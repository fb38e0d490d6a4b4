export { type DiskFileHandle, fileHandle } from "./file-handle.js";
