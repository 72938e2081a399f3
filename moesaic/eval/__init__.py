"""Scores of a model on published tasks, each with its error and the answers kept to be read."""
