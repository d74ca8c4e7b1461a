"""One row per key: the first or the last."""
