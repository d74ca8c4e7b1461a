"""From a plan to rows that arrived: tasks, epochs, recovery, errors, counts."""
