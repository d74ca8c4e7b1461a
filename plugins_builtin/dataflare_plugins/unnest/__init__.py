"""One row per element of a list."""
