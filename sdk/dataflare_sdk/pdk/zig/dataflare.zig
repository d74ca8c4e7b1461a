//! DataFlare's columnar lane, ABI 1, for Zig. The README beside this folder is the whole ABI.
//!
//!     const df = @import("dataflare");
//!     comptime { df.processor(@This()); }                                    or df.source, df.destination
//!
//!     pub fn describe() []const u8 {...}                                     JSON
//!     pub fn init(config: []const u8) df.Error!void {...}                    JSON of the `with:` block
//!
//!     processor    pub fn process(in: *const df.Array, schema: *const df.Schema, out: *df.Out) df.Error!void {...}
//!     source       pub fn read(state: []const u8, max_rows: usize, out: *df.Read) df.Error!void {...}
//!     destination  pub fn write(in: *const df.Array, schema: *const df.Schema) df.Error!void {...}
//!                  pub fn flush() df.Error!u64 {...}                         how many rows are durable now
//!
//! Memory comes from `df.allocator`: an arena that the host empties after every call. `df.keep()` spares what was allocated so
//! far, `df.forget()` gives that back. It is the only allocator: `std.heap.wasm_allocator` would take pages out of its middle.
const std = @import("std");

pub const Schema = extern struct {
    format: [*:0]const u8,
    name: ?[*:0]const u8 = null,
    metadata: ?[*]const u8 = null,
    flags: i64 = 2,
    n_children: i64 = 0,
    children: ?[*]*Schema = null,
    dictionary: ?*Schema = null,
    release: u32 = 1,
    private_data: u32 = 0,
};

pub const Array = extern struct {
    length: i64,
    null_count: i64 = -1,
    offset: i64 = 0,
    n_buffers: i64 = 0,
    n_children: i64 = 0,
    buffers: ?[*]?*const anyopaque = null,
    children: ?[*]*Array = null,
    dictionary: ?*Array = null,
    release: u32 = 1,
    private_data: u32 = 0,

    pub fn rows(a: *const Array) usize {
        return @intCast(a.length);
    }
    pub fn child(a: *const Array, i: usize) *Array {
        return a.children.?[i];
    }
    /// The bitmap of rows that are not NULL; null: none is.
    pub fn valid(a: *const Array) ?[*]const u8 {
        return @ptrCast(a.buffers.?[0]);
    }
    pub fn isNull(a: *const Array, i: usize) bool {
        const there = a.valid() orelse return false;
        return there[i >> 3] >> @intCast(i & 7) & 1 == 0;
    }
    /// The values of a column of fixed width.
    pub fn values(a: *const Array, comptime T: type) []const T {
        const p: [*]const T = @ptrCast(@alignCast(a.buffers.?[1] orelse return &.{}));
        return p[0..a.rows()];
    }
    /// Where each text or list ends, and before them where the first begins.
    pub fn offsets(a: *const Array) []const i32 {
        const p: [*]const i32 = @ptrCast(@alignCast(a.buffers.?[1] orelse return &.{0}));
        return p[0 .. a.rows() + 1];
    }
    /// The text of a row.
    pub fn text(a: *const Array, i: usize) []const u8 {
        const p: [*]const u8 = @ptrCast(a.buffers.?[2] orelse return "");
        const ends = a.offsets();
        return p[@intCast(ends[i])..@intCast(ends[i + 1])];
    }
};

pub const Out = extern struct { array: ?*Array = null, schema: ?*Schema = null };
pub const Bytes = extern struct {
    ptr: [*]const u8 = "",
    len: u32 = 0,

    pub fn of(data: []const u8) Bytes {
        return .{ .ptr = data.ptr, .len = @intCast(data.len) };
    }
};
/// What a source gives: rows, the state behind them, and 1 in `done` when nothing follows.
pub const Read = extern struct { array: ?*Array = null, schema: ?*Schema = null, state: Bytes = .{}, done: u32 = 0 };
const Ack = extern struct { rows: u64 };

comptime {
    if (@sizeOf(usize) != 4) @compileError("build for wasm32");
    if (@sizeOf(Schema) != 48 or @sizeOf(Array) != 64) @compileError("the layout of wasm32");
    if (@sizeOf(Out) != 8 or @sizeOf(Read) != 20 or @sizeOf(Ack) != 8) @compileError("the layout of ABI 1");
}
const Failure = extern struct { ptr: [*]const u8, len: u32, code: i32 };

/// What went wrong: with these rows, for the moment, with the configuration, or for good.
pub const Error = error{ Rows, TryLater, Config, Fatal, OutOfMemory };

/// What the host gives; a module that calls one of these has to name it in its manifest.
pub const host = struct {
    pub extern "dataflare" fn log(level: u32, text: [*]const u8, len: u32) void;
    pub extern "dataflare" fn metric(name: [*]const u8, len: u32, value: f64) void;
    pub extern "dataflare" fn clock() i64;
    pub extern "dataflare" fn state_get(key: [*]const u8, key_len: u32, to: ?[*]u8, room: u32) i32;
    pub extern "dataflare" fn state_put(key: [*]const u8, key_len: u32, value: [*]const u8, len: u32) i32;
    pub extern "dataflare" fn http_send(request: [*]const u8, len: u32) i32;
    pub extern "dataflare" fn http_body(to: ?[*]u8, room: u32) i32;
    pub extern "dataflare" fn http_header(name: [*]const u8, name_len: u32, to: ?[*]u8, room: u32) i32;
};

extern var __heap_base: u8;
var top: usize = 0;
var bottom: usize = 0;

fn first() usize {
    return std.mem.alignForward(usize, @intFromPtr(&__heap_base), 64);
}

fn take(size: usize) ?[*]u8 {
    if (bottom == 0) {
        bottom = first();
        top = bottom;
    }
    const begin = top;
    const end = std.math.add(usize, begin, std.math.add(usize, size, 63) catch return null) catch return null;
    const need = (end >> 16) + 1;
    const have = @wasmMemorySize(0);
    if (need > have and @wasmMemoryGrow(0, need - have) < 0) return null;
    top = end & ~@as(usize, 63);
    return @ptrFromInt(begin);
}

/// What has been allocated so far outlives the host's df_reset.
pub fn keep() void {
    bottom = top;
}

/// Everything that was kept may be forgotten with the next df_reset, what `init` kept included.
pub fn forget() void {
    bottom = first();
}

/// The arena as Zig's library wants it. Nothing is freed one by one; what was allocated last can grow where it is.
pub const allocator: std.mem.Allocator = .{ .ptr = undefined, .vtable = &.{ .alloc = arenaAlloc, .resize = arenaResize, .remap = arenaRemap, .free = arenaFree } };

fn arenaAlloc(_: *anyopaque, size: usize, alignment: std.mem.Alignment, _: usize) ?[*]u8 {
    return if (alignment.toByteUnits() > 64) null else take(size);
}
fn arenaResize(_: *anyopaque, memory: []u8, _: std.mem.Alignment, size: usize, _: usize) bool {
    const begin = @intFromPtr(memory.ptr);
    // Kept memory ends where the arena begins anew, so it does not grow: a reset would cut what was added.
    if (begin < bottom or std.mem.alignForward(usize, begin + memory.len, 64) != top) return size <= memory.len;
    top = begin;
    if (take(size) != null) return true;
    top = std.mem.alignForward(usize, begin + memory.len, 64);
    return false;
}
fn arenaRemap(context: *anyopaque, memory: []u8, alignment: std.mem.Alignment, size: usize, caller: usize) ?[*]u8 {
    return if (arenaResize(context, memory, alignment, size, caller)) memory.ptr else null;
}
fn arenaFree(_: *anyopaque, _: []u8, _: std.mem.Alignment, _: usize) void {}

/// `n` values in the arena, aligned to 64 bytes.
pub fn make(comptime T: type, n: usize) Error![]T {
    const p: [*]T = @ptrCast(@alignCast(take(std.math.mul(usize, n, @sizeOf(T)) catch return error.OutOfMemory) orelse return error.OutOfMemory));
    return p[0..n];
}

/// An array with room for its pointers; buffers are null until they are set.
pub fn array(rows: usize, buffers: usize, children: usize) Error!*Array {
    const a = &(try make(Array, 1))[0];
    const places = try make(?*const anyopaque, buffers + children);
    @memset(places, null);
    a.* = .{ .length = @intCast(rows), .n_buffers = @intCast(buffers), .n_children = @intCast(children) };
    a.buffers = if (buffers > 0) places.ptr else null;
    a.children = if (children > 0) @ptrCast(places.ptr + buffers) else null;
    return a;
}

/// Bytes that are kept from call to call: what a destination stages.
pub const Stage = struct {
    room: []u8 = &.{},
    len: usize = 0,

    pub fn bytes(s: *const Stage) []const u8 {
        return s.room[0..s.len];
    }
    /// Append all of `data`, or nothing. What is there is moved when it has to grow; only then is anything kept of the arena.
    pub fn append(s: *Stage, data: []const u8) Error!void {
        if (s.room.len - s.len < data.len) {
            const larger = try make(u8, 2 * (s.len + data.len) + 65536);
            @memcpy(larger[0..s.len], s.bytes());
            s.room = larger;
            keep();
        }
        @memcpy(s.room[s.len..][0..data.len], data);
        s.len += data.len;
    }
    pub fn clear(s: *Stage) void {
        s.len = 0;
    }
};

/// A column of values: the array, and its rows to be written.
pub fn Column(comptime T: type) type {
    return struct { array: *Array, values: []T };
}

/// A column of `n` values of fixed width, none of them NULL until `buffers[0]` is set to a bitmap.
pub fn column(comptime T: type, n: usize) Error!Column(T) {
    const a = try array(n, 2, 0);
    const to = try make(T, n);
    a.buffers.?[1] = to.ptr;
    return .{ .array = a, .values = to };
}

/// A column of texts; where one is null, the row is NULL.
pub fn texts(rows: []const ?[]const u8) Error!*Array {
    const a = try array(rows.len, 3, 0);
    const ends = try make(i32, rows.len + 1);
    const valid = try bitmap(rows.len);
    var size: usize = 0;
    for (rows) |row| size += if (row) |t| t.len else 0;
    if (size > std.math.maxInt(i32)) return error.OutOfMemory;
    const data = try make(u8, size);
    var end: usize = 0;
    ends[0] = 0;
    for (rows, 0..) |row, i| {
        if (row) |t| {
            @memcpy(data[end..][0..t.len], t);
            end += t.len;
        }
        set(valid, i, row != null);
        ends[i + 1] = @intCast(end);
    }
    a.buffers.?[0] = valid.ptr;
    a.buffers.?[1] = ends.ptr;
    a.buffers.?[2] = data.ptr;
    return a;
}

/// A bitmap for `n` rows, all zero, rounded up to whole 64-bit words.
pub fn bitmap(n: usize) Error![]u8 {
    const made = try make(u8, (n + 63) / 64 * 8);
    @memset(made, 0);
    return made;
}

/// Set the bit of a row.
pub fn set(bits: []u8, i: usize, on: bool) void {
    const bit = @as(u8, 1) << @intCast(i & 7);
    if (on) bits[i >> 3] |= bit else bits[i >> 3] &= ~bit;
}

/// The table of what is given.
pub fn table(rows: usize, columns: []const *Array) Error!*Array {
    const a = try array(rows, 1, columns.len);
    for (columns, 0..) |c, i| a.children.?[i] = c;
    return a;
}

var reason: []const u8 = "";

/// Say why, then return one of `Error`.
pub fn because(text: []const u8) void {
    reason = text;
}

/// Say why, and give the error to return: `return df.fail(error.Config, "…")`.
pub fn fail(e: Error, text: []const u8) Error {
    reason = text;
    return e;
}

var failure: Failure = .{ .ptr = "", .len = 0, .code = 0 };
var said: Bytes = .{ .ptr = "", .len = 0 };

fn answer(result: Error!void) u32 {
    result catch |e| {
        const text = if (reason.len > 0) reason else @errorName(e);
        failure = .{ .ptr = text.ptr, .len = @intCast(text.len), .code = switch (e) {
            error.Rows => 1,
            error.TryLater => 2,
            error.Config => 3,
            error.Fatal, error.OutOfMemory => 4,
        } };
        reason = "";
        return 1;
    };
    return 0;
}

fn Common(comptime G: type) type {
    return struct {
        fn version() callconv(.c) u32 {
            return 1;
        }
        fn alloc(size: u32) callconv(.c) ?[*]u8 {
            return take(size);
        }
        fn reset() callconv(.c) void {
            if (bottom != 0) top = bottom;
        }
        fn lastError() callconv(.c) *const Failure {
            return &failure;
        }
        fn describe() callconv(.c) *const Bytes {
            const text: []const u8 = G.describe();
            said = .{ .ptr = text.ptr, .len = @intCast(text.len) };
            return &said;
        }
        fn init(config: *const Bytes) callconv(.c) u32 {
            return answer(G.init(config.ptr[0..config.len]));
        }
    };
}

fn common(comptime G: type) void {
    const C = Common(G);
    @export(&C.version, .{ .name = "dataflare_abi_version" });
    @export(&C.alloc, .{ .name = "df_alloc" });
    @export(&C.reset, .{ .name = "df_reset" });
    @export(&C.lastError, .{ .name = "df_last_error" });
    @export(&C.describe, .{ .name = "df_describe" });
    @export(&C.init, .{ .name = "df_init" });
}

/// Export a processor: `describe`, `init`, `process`.
pub fn processor(comptime G: type) void {
    common(G);
    const P = struct {
        fn process(in: *const Array, schema: *const Schema, out: *Out) callconv(.c) u32 {
            return answer(G.process(in, schema, out));
        }
    };
    @export(&P.process, .{ .name = "df_process" });
}

/// Export a source: `describe`, `init`, `read`.
pub fn source(comptime G: type) void {
    common(G);
    const S = struct {
        fn read(state: ?[*]const u8, len: u32, max_rows: u32, out: *Read) callconv(.c) u32 {
            return answer(G.read(if (state) |s| s[0..len] else "", max_rows, out));
        }
    };
    @export(&S.read, .{ .name = "df_read" });
}

/// Export a destination: `describe`, `init`, `write`, `flush`.
pub fn destination(comptime G: type) void {
    common(G);
    const D = struct {
        fn write(in: *const Array, schema: *const Schema) callconv(.c) u32 {
            return answer(G.write(in, schema));
        }
        fn flush(ack: *Ack) callconv(.c) u32 {
            return answer(if (G.flush()) |rows| acknowledge(ack, rows) else |e| e);
        }
        fn acknowledge(ack: *Ack, rows: u64) void {
            ack.rows = rows;
        }
    };
    @export(&D.write, .{ .name = "df_write" });
    @export(&D.flush, .{ .name = "df_flush" });
}
