"""Routing by domain."""

from moesaic.report.blocks import Section
from moesaic.report.read import Sources


def routing(sources: Sources) -> Section | None:
    """Nothing yet."""
    return None
