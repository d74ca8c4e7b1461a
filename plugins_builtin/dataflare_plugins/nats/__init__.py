"""NATS JetStream as source and destination."""
