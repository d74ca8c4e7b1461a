"""Keep the rows a condition is true for."""
