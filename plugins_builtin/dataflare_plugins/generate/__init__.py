"""A source of made rows."""
