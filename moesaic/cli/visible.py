"""What a model wrote, as a terminal may show it."""

import sys

_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
_PICTURES |= {0x7F: 0x2421, **dict.fromkeys(range(0x80, 0xA0), 0xFFFD)}


def visible(text: str) -> str:
    """A text whose control characters are shown, so that it cannot steer the terminal.

    Where no terminal reads it, it stays as it is.
    """
    return text.translate(_PICTURES) if sys.stdout.isatty() else text
