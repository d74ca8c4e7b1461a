"""Standard input and output, for pipes."""
