"""`webhook`: an HTTP server that takes rows and says so when they are on the disk."""
