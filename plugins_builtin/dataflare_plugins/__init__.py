"""Built-in plugins: every feature of DataFlare, one folder each."""
