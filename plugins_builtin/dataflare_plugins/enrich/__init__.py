"""Add columns from a table or file by key."""
