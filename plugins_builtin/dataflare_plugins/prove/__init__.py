"""`dataflare prove`: a workflow killed again and again on scratch systems, and compared row for row."""
