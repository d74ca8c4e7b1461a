"""The host's side: what a worker may see, how it is started, spoken to, watched and ended."""
