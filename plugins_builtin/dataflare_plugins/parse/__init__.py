"""Read JSON or text by a pattern into columns."""
