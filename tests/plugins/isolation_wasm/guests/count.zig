//! count: rows that count from `first` to `last`, with a word where the number is even. A source that can go on after any row.
const std = @import("std");
const df = @import("dataflare");

comptime {
    df.source(@This());
}

const Config = struct { first: i64 = 1, last: i64 = 10 };
var config: Config = .{};

pub fn describe() []const u8 {
    return
        \\{"kind": "source", "key": ["n"], "columns": [{"name": "n", "format": "l"}, {"name": "word", "format": "u"}]}
    ;
}

pub fn init(given: []const u8) df.Error!void {
    config = std.json.parseFromSliceLeaky(Config, df.allocator, given, .{}) catch return df.fail(error.Config, "the keys are: first, last (whole numbers)");
}

/// The state is the number that comes next, as eight bytes.
pub fn read(state: []const u8, max_rows: usize, out: *df.Read) df.Error!void {
    if (state.len != 0 and state.len != 8) return df.fail(error.Fatal, "the state is none of mine");
    const next = if (state.len == 8) std.mem.readInt(i64, state[0..8], .little) else config.first;
    const n = try df.column(i64, @min(max_rows, @as(usize, @intCast(@max(config.last - next + 1, 0)))));
    const words = try df.make(?[]const u8, n.values.len);
    for (n.values, words, 0..) |*number, *word, i| {
        number.* = next + @as(i64, @intCast(i));
        word.* = if (@mod(number.*, 2) == 0) "even" else null;
    }
    const after = try df.make(u8, 8);
    const following = next + @as(i64, @intCast(n.values.len));
    std.mem.writeInt(i64, after[0..8], following, .little);
    out.* = .{ .array = try df.table(n.values.len, &.{ n.array, try df.texts(words) }), .state = .of(after), .done = @intFromBool(following > config.last) };
}
