"""The binary log: a client of its own, events, rows in bulk to Arrow, and the reader of changes."""
