"""Rows of a web service, asked by key."""
