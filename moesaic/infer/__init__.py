"""Text from a built model: caches, sampling, generation."""
