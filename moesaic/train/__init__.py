"""One training loop for pretraining and fine-tuning, with everything it needs to resume exactly."""
