"""MQTT: topics of a broker as a source, and as a destination."""
