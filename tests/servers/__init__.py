"""Real servers for tests, started and ended by them. Nothing is expected to be running.

`postgres.py` starts PostgreSQL, `fixtures.py` hands servers and fresh databases to tests.
"""
