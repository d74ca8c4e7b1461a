"""Reading tables by SELECT: whole, in chunks by key, by a cursor."""
