"""Decoding on a CPU in one call per token: C++ beside, compiled where it is first used.

The meaning of it is `moesaic.model`; whoever cannot compile it has that.
"""
