"""`file-tail`: files that grow, followed line by line."""
