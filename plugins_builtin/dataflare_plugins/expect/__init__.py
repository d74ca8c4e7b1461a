"""Hold rows to rules."""
