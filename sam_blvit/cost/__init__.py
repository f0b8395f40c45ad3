"""What a model costs: operations and time."""
