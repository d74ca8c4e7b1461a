"""`python -m dataflare` is the command `dataflare`."""

from dataflare.cli import entry

entry()
