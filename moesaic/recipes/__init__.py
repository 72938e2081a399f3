"""Run files that ship with moesaic, as `moesaic demo` uses them."""
