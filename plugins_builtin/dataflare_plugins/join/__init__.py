"""Join two inputs by key."""
