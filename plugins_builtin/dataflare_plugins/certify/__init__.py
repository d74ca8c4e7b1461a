"""`dataflare plugin certify`; it has no hooks."""
