"""What passes between host and worker: framed JSON, Arrow data beside it, and nothing that could be code."""
