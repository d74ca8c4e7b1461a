"""Topics of Kafka: as a source, and as a destination with transactions."""
