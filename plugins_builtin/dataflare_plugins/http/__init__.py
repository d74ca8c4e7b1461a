"""`http`: rows are sent to a server, batch by batch."""
