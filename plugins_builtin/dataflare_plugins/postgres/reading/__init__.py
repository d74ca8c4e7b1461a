"""How a table or query is read: whole from one snapshot, whole in chunks, or what is new since the last time."""
