"""The state store of single mode: one SQLite file beside the workflow."""
