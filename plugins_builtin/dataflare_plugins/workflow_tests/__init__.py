"""`dataflare test` and `dataflare dev`: workflows on given rows, a virtual clock and destinations of the occasion."""
