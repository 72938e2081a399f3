"""What parts below have to say while a command runs, on the standard error."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Messages(logging.Handler):
    """Prints warnings, and in a terminal also what is only information."""

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        if sys.stderr is None:  # closed by who started this
            return
        if record.levelno >= logging.WARNING or sys.stderr.isatty():
            print(f"moesaic: {self.format(record)}", file=sys.stderr, flush=True)


@contextmanager
def messages() -> Iterator[None]:
    """Print what the package logs, as long as this lasts."""
    logger, handler = logging.getLogger("moesaic"), _Messages()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
