"""Turn the fields of a struct into columns."""
