"""The tasks, one published data set per file."""
