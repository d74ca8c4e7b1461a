"""PostgreSQL databases, read and written."""
