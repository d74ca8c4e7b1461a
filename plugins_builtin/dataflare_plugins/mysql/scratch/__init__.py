"""Scratch twins of MySQL databases, on a MariaDB of their own."""
