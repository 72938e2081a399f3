"""Checkpoints in the published layout: read, checked, written and digested, tensor by tensor."""
