"""Change data capture: a slot, a snapshot of each table, then everything that happens to it."""
