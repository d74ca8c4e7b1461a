// DataFlare's columnar lane, ABI 1, for AssemblyScript. Build with `--runtime stub --use abort=`: memory is an arena that the
// host empties after every call. Numbers in globals are kept from one call to the next, and literals; a text or array that was made
// in a call, or when the module began, is gone with it even where a global still refers to it.
//
//     export { dataflare_abi_version, df_alloc, df_reset, df_last_error } from "./dataflare";
//
// and write df_describe, df_init and df_process. The README beside this folder is the whole ABI.

@unmanaged export class Schema {
  format: usize; name: usize; metadata: usize; private padding: u32;
  flags: i64; nChildren: i64;
  children: usize; dictionary: usize; release: u32; privateData: u32;

  child(i: i32): Schema { return changetype<Schema>(load<usize>(this.children + 4 * i)); }
  /** The first letter of the format string: `g` DOUBLE, `l` BIGINT, `u` VARCHAR. */
  kind(): u8 { return load<u8>(this.format); }
}

@unmanaged export class Arr {
  length: i64; nullCount: i64; offset: i64; nBuffers: i64; nChildren: i64;
  buffers: usize; children: usize; dictionary: usize; release: u32; privateData: u32;

  child(i: i32): Arr { return changetype<Arr>(load<usize>(this.children + 4 * i)); }
  buffer(i: i32): usize { return load<usize>(this.buffers + 4 * i); }
  isNull(i: i32): bool {
    const valid = this.buffer(0);
    return valid != 0 && ((load<u8>(valid + (i >> 3)) >> (<u8>(i & 7))) & 1) == 0;
  }
}

/** Bytes in the arena, aligned to 8. */
export function make(size: usize): usize { return (heap.alloc(size + 8) + 7) & ~7; }

/** An array over `buffers` buffers and `children` children, to be set with `setBuffer` and `setChild`. */
export function array(rows: i64, buffers: i32, children: i32): Arr {
  const at = make(64 + 4 * (buffers + children));
  memory.fill(at, 0, 64 + 4 * (buffers + children));
  const a = changetype<Arr>(at);
  a.length = rows; a.nullCount = -1; a.nBuffers = buffers; a.nChildren = children; a.release = 1;
  a.buffers = at + 64; a.children = at + 64 + 4 * buffers;
  return a;
}
export function setBuffer(a: Arr, i: i32, at: usize): void { store<usize>(a.buffers + 4 * i, at); }
export function setChild(a: Arr, i: i32, child: Arr): void { store<usize>(a.children + 4 * i, changetype<usize>(child)); }

const report = memory.data(12);
const said = memory.data(8);

/** Say why, and return what the export has to return: 1 these rows, 2 try later, 3 configuration, 4 for good. */
export function fail(code: i32, text: string): u32 {
  const utf8 = String.UTF8.encode(text);
  store<usize>(report, changetype<usize>(utf8)); store<u32>(report, utf8.byteLength, 4); store<i32>(report, code, 8);
  return 1;
}
/** The answer of df_describe. */
export function says(json: string): usize {
  const utf8 = String.UTF8.encode(json);
  store<usize>(said, changetype<usize>(utf8)); store<u32>(said, utf8.byteLength, 4);
  return said;
}

export function dataflare_abi_version(): u32 { return 1; }
export function df_alloc(size: usize): usize { return (heap.alloc(size + 64) + 63) & ~63; }
export function df_reset(): void { heap.reset(); }
export function df_last_error(): usize { return report; }
