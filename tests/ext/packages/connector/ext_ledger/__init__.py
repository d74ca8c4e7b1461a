"""A source and a destination that came from outside; they stand in for a stranger's connector."""
