//! DataFlare's columnar lane, ABI 1, for Zig. The README beside this folder is the whole ABI.
//!
//!     const df = @import("dataflare");
//!     comptime { df.processor(@This()); }
//!
//!     pub fn describe() []const u8 {...}                                     JSON
//!     pub fn init(config: []const u8) df.Error!void {...}                    JSON of the `with:` block
//!     pub fn process(in: *const df.Array, schema: *const df.Schema, out: *df.Out) df.Error!void {...}
//!
//! Memory comes from `df.allocator`: an arena that the host empties after every call; `df.keep()` spares what was allocated so far.
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
        const bits = a.valid() orelse return false;
        return bits[i >> 3] >> @intCast(i & 7) & 1 == 0;
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
const Bytes = extern struct { ptr: [*]const u8, len: u32 };
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

var reason: []const u8 = "";

/// Say why, then return one of `Error`.
pub fn because(text: []const u8) void {
    reason = text;
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
