"""DuckDB databases, read and written."""
