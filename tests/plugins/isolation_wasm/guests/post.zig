//! post: every epoch's rows of (id, name), as JSON lines, in one request to host, port and path of its configuration.
const std = @import("std");
const df = @import("dataflare");

comptime {
    df.destination(@This());
}

const Config = struct { host: []const u8, port: u16, path: []const u8 };
var url: []const u8 = "";
var lines: df.Stage = .{};
var staged: u64 = 0;

pub fn describe() []const u8 {
    return
        \\{"kind": "destination", "reads": ["id", "name"], "modes": ["append"]}
    ;
}

pub fn init(given: []const u8) df.Error!void {
    const config = std.json.parseFromSliceLeaky(Config, df.allocator, given, .{}) catch return df.fail(error.Config, "the keys are: host, port, path");
    url = try std.fmt.allocPrint(df.allocator, "http://{s}:{d}{s}", .{ config.host, config.port, config.path });
    df.keep();
}

pub fn write(in: *const df.Array, _: *const df.Schema) df.Error!void {
    var text = std.Io.Writer.Allocating.init(df.allocator);
    const ids, const names = .{ in.child(0), in.child(1) };
    for (0..in.rows()) |i| {
        const row = .{
            .id = if (ids.isNull(i)) null else @as(?i64, ids.values(i64)[i]),
            .name = if (names.isNull(i)) null else @as(?[]const u8, names.text(i)),
        };
        if (row.id == 99) return df.fail(error.Rows, "99 is taken");
        text.writer.print("{f}\n", .{std.json.fmt(row, .{})}) catch return error.OutOfMemory;
    }
    try lines.append(text.written());
    staged += in.rows();
}

pub fn flush() df.Error!u64 {
    if (staged > 0) {
        const request = std.json.Stringify.valueAlloc(df.allocator, .{ .method = "POST", .url = url, .body = lines.bytes() }, .{}) catch return error.OutOfMemory;
        const status = df.host.http_send(request.ptr, @intCast(request.len));
        if (status < 200 or status > 299) return df.fail(error.TryLater, "the server did not take the rows");
    }
    defer {
        staged = 0;
        lines.clear();
    }
    return staged;
}
