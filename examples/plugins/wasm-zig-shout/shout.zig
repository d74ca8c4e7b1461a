//! shout: a column of text in capitals; letters beyond ASCII stay as they are.
const std = @import("std");
const df = @import("dataflare");

comptime {
    df.processor(@This());
}

var column: []const u8 = "text";
var description: []const u8 = "";

pub fn init(config: []const u8) df.Error!void {
    const Config = struct { column: []const u8 = "text" };
    var memory = std.heap.FixedBufferAllocator.init(try df.make(u8, 16 * config.len + 4096));
    const read = std.json.parseFromSliceLeaky(Config, memory.allocator(), config, .{}) catch {
        df.because("the keys are: column (text)");
        return error.Config;
    };
    column = read.column;
    const name = std.json.Stringify.valueAlloc(memory.allocator(), column, .{}) catch return error.OutOfMemory;
    const form = "{{\"kind\": \"processor\", \"reads\": [{s}], \"outputs\": [{{\"rows\": \"same\", \"columns\": [{{\"name\": {s}, \"format\": \"u\"}}]}}]}}";
    const room = try df.make(u8, form.len + 2 * name.len);
    description = std.fmt.bufPrint(room, form, .{ name, name }) catch return error.Fatal;
    df.keep();
}

pub fn describe() []const u8 {
    return description;
}

pub fn process(in: *const df.Array, schema: *const df.Schema, out: *df.Out) df.Error!void {
    const text = in.child(0);
    if (!std.mem.eql(u8, std.mem.span(schema.children.?[0].format), "u")) {
        df.because("only VARCHAR can be shouted");
        return error.Config;
    }
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
    const table = try df.array(in.rows(), 1, 1);
    table.children.?[0] = made;
    out.array = table;
}
