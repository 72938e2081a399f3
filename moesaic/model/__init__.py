"""The decoder of the DeepSeek family, in plain single-device PyTorch."""
