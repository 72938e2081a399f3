"""Settings: what a model is, and what a run does. Nothing here imports torch."""
