"""What runs inside the sandbox: it answers the host's calls with a plugin's components."""
