"""Files: CSV, JSON lines, Parquet and Arrow, read and written."""
