"""The state store of many machines: one PostgreSQL database that all of them reach."""
