"""Redis Streams as source and destination."""
