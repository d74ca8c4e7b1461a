"""`python -m dataflare` is the command `dataflare`."""

from dataflare.process import entry

entry()
