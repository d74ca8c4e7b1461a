"""Writing tables: types, evolution, checks, statements, the swap of an overwrite."""
