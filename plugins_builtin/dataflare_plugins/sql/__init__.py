"""Any one SELECT over the inputs."""
