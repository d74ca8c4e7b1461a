"""Scratch twins of PostgreSQL databases, on a server of their own."""
