"""A function of your own, per batch or per row."""
