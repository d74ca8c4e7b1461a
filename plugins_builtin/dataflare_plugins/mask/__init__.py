"""Hide values: redact, hash or show a part."""
