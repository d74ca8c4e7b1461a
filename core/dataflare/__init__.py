"""DataFlare: one workflow file moves rows from sources through processors to destinations."""
