"""From a workflow file to the workflow model: YAML and JSON with places, defaults, profiles, parameters."""
