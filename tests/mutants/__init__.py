"""Deliberate faults that `dataflare prove` must catch: `make mutants`."""
