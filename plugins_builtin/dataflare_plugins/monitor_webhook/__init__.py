"""Events of a run, posted to an address as JSON."""
