"""What a model costs: parameters, memory, FLOPs and time, from its configuration alone."""
