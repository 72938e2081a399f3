"""Tokenizers, data sources and the loader that turns documents into batches."""
