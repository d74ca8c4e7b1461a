"""How rows get into a table: its columns, an epoch on its way, the statements that apply it, the swap of an overwrite."""
