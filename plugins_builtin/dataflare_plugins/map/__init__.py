"""Select, rename, compute and drop columns."""
