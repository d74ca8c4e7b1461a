"""The expression engine: SQL in DuckDB's dialect, gated, bound at plan time, compiled once per step."""
