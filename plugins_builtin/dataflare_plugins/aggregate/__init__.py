"""Group rows and compute aggregates."""
