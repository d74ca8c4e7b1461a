//! The arithmetic of kernels.c as JSON lines, for Extism.
const std = @import("std");
extern "extism:host/env" fn input_length() u64;
extern "extism:host/env" fn input_load_u8(u64) u32;
extern "extism:host/env" fn input_load_u64(u64) u64;
extern "extism:host/env" fn alloc(u64) u64;
extern "extism:host/env" fn store_u8(u64, u32) void;
extern "extism:host/env" fn store_u64(u64, u64) void;
extern "extism:host/env" fn output_set(u64, u64) void;

const Row = struct { price: ?f64, qty: ?i64 };
const Out = struct { total: ?f64 };
var arena = std.heap.ArenaAllocator.init(std.heap.wasm_allocator);

fn run() !void {
    const a = arena.allocator();
    const n: usize = @intCast(input_length());
    const text = try a.alloc(u8, n);
    var i: usize = 0;
    while (i + 8 <= n) : (i += 8) std.mem.writeInt(u64, text[i..][0..8], input_load_u64(i), .little);
    while (i < n) : (i += 1) text[i] = @truncate(input_load_u8(i));
    var made: std.Io.Writer.Allocating = try .initCapacity(a, n);
    var lines = std.mem.splitScalar(u8, text, '\n');
    while (lines.next()) |line| {
        if (line.len == 0) continue;
        const row = try std.json.parseFromSliceLeaky(Row, a, line, .{});
        const total: ?f64 = if (row.price) |p| (if (row.qty) |q| p * @as(f64, @floatFromInt(q)) else null) else null;
        try std.json.Stringify.value(Out{ .total = total }, .{}, &made.writer);
        try made.writer.writeByte('\n');
    }
    const out = made.written();
    const block = alloc(out.len);
    i = 0;
    while (i + 8 <= out.len) : (i += 8) store_u64(block + i, std.mem.readInt(u64, out[i..][0..8], .little));
    while (i < out.len) : (i += 1) store_u8(block + i, out[i]);
    output_set(block, out.len);
}

export fn process() i32 {
    defer _ = arena.reset(.retain_capacity);
    run() catch return 1;
    return 0;
}

fn say(text: []const u8) i32 {
    const block = alloc(text.len);
    for (text, 0..) |c, at| store_u8(block + at, c);
    output_set(block, text.len);
    return 0;
}

export fn describe() i32 {
    return say("{\"reads\": [\"price\", \"qty\"], \"outputs\": [{\"rows\": \"same\", \"columns\": [{\"name\": \"total\", \"format\": \"g\"}]}]}");
}
