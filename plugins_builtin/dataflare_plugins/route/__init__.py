"""Send each row to the first route that matches."""
