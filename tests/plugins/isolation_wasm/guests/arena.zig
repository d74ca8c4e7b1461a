//! arena: keeps a MiB with every batch and forgets it again; gives how many of 50,000 numbers a list that grew held on to.
const std = @import("std");
const df = @import("dataflare");

comptime {
    df.processor(@This());
}

pub fn describe() []const u8 {
    return
        \\{"outputs": [{"rows": "same", "columns": [{"name": "held", "format": "l"}]}]}
    ;
}

pub fn init(_: []const u8) df.Error!void {}

pub fn process(in: *const df.Array, _: *const df.Schema, out: *df.Out) df.Error!void {
    _ = try df.make(u8, 1 << 20);
    df.keep();
    df.forget();
    var lists: [2]std.ArrayList(u32) = .{ .empty, .empty }; // the first can grow where it is until the second is there
    for (0..50_000) |i| try lists[if (i < 20_000) 0 else i % 2].append(df.allocator, @intCast(i));
    var held: i64 = 0;
    for (lists, 0..) |list, which| {
        for (list.items, 0..) |item, i| held += @intFromBool(item == if (which == 0 and i < 20_000) i else 20_000 + 2 * (i - (if (which == 0) @as(usize, 20_000) else 0)) + which);
    }
    const column = try df.column(i64, in.rows());
    @memset(column.values, held);
    out.array = try df.table(in.rows(), &.{column.array});
}
