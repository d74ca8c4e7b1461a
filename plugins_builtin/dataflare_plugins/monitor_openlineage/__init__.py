"""What a run reads and writes, as OpenLineage events: to a server, or to a file."""
