"""Verbs for authors of plugins; it has no hooks."""
