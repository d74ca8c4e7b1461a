"""SQLite databases, read and written."""
