"""From a workflow to a plan: the graph, types, columns nobody uses, lanes, tasks, guarantees."""
