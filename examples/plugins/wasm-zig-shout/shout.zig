//! shout: a column of text in capitals; letters beyond ASCII stay as they are.
const std = @import("std");
const df = @import("dataflare");

comptime {
    df.processor(@This());
}

var description: []const u8 = "";

pub fn init(config: []const u8) df.Error!void {
    const Config = struct { column: []const u8 = "text" };
    const read = std.json.parseFromSliceLeaky(Config, df.allocator, config, .{}) catch return df.fail(error.Config, "the keys are: column (text)");
    const columns = [_]struct { name: []const u8, format: []const u8 }{.{ .name = read.column, .format = "u" }};
    const outputs = [_]struct { rows: []const u8, columns: []const @TypeOf(columns[0]) }{.{ .rows = "same", .columns = &columns }};
    description = std.json.Stringify.valueAlloc(df.allocator, .{ .reads = .{read.column}, .outputs = outputs }, .{}) catch return error.OutOfMemory;
    df.keep();
}

pub fn describe() []const u8 {
    return description;
}

pub fn process(in: *const df.Array, schema: *const df.Schema, out: *df.Out) df.Error!void {
    const text = in.child(0);
    if (!std.mem.eql(u8, std.mem.span(schema.children.?[0].format), "u")) return df.fail(error.Config, "only VARCHAR can be shouted");
    const ends = text.offsets();
    const size: usize = @intCast(ends[ends.len - 1]);
    const loud = try df.make(u8, size);
    if (size > 0) {
        const quiet = @as([*]const u8, @ptrCast(text.buffers.?[2].?))[0..size];
        for (quiet, loud) |from, *to| to.* = from ^ (@as(u8, @intFromBool(from -% 'a' < 26)) << 5);
    }
    const made = try df.array(in.rows(), 3, 0);
    made.buffers.?[0] = text.buffers.?[0]; // NULL where it was, and texts as long as they were
    made.buffers.?[1] = text.buffers.?[1];
    made.buffers.?[2] = loud.ptr;
    out.array = try df.table(in.rows(), &.{made});
}
