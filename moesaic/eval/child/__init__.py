"""What runs inside the limited process of `moesaic.eval.sandbox`, on the standard library alone."""
