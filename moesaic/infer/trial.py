"""`try_grammar`: whether a grammar can be compiled in bounded time, found in a process that can be
stopped."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import moesaic
from moesaic.errors import RequestError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits

MOST_S = 5
"""Seconds after which compiling is given up: not all of it is counted in steps."""
_MOST_BYTES = 2 << 30
"""Memory of the process."""
_MOST_TOLD = 300
"""Characters of an explanation."""
_START = (
    f"import sys; sys.path.insert(0, {str(Path(moesaic.__file__).parents[1])!r}); "
    "from moesaic.infer.trial import main; main()"
)


def try_grammar(grammar: str) -> None:
    """Compile a grammar elsewhere, and see what may follow at first.

    Args:
        grammar: in llguidance's own form.

    Raises:
        RequestError: if it is wrong, too large, or takes too long; says only why.
    """
    command = [sys.executable, "-P", "-X", "utf8", "-c", _START]
    try:
        done = subprocess.run(
            command, input=grammar, capture_output=True, encoding="utf-8", timeout=MOST_S
        )
    except subprocess.TimeoutExpired:
        raise RequestError(f"it takes more than {MOST_S} s to compile") from None
    if done.returncode:
        raise RequestError("it needs too much memory")
    if done.stdout:
        raise RequestError(done.stdout)


def main() -> None:
    """Compile what stands on the standard input; says what is wrong with it, or nothing."""
    from llguidance import LLMatcher, LLTokenizer

    with suppress(ImportError, ValueError):  # a bound that not every system has
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (MOST_S, MOST_S))
    matcher = LLMatcher(LLTokenizer("byte"), sys.stdin.read(), log_level=0, limits=limits())
    if not matcher.is_error():
        matcher.compute_bitmask()
    sys.stdout.write(why(matcher))


def limits() -> "LLParserLimits":
    """Steps that may be taken to compile a grammar, and to find what may follow a token."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=300_000,
        step_lexer_fuel=100_000,
        step_max_items=50_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


def why(matcher: "LLMatcher") -> str:
    """What the library says against a grammar, in one line; nothing if it is content."""
    told = " ".join(matcher.get_error().split())
    if told.startswith("panic"):  # one of its own bounds
        return "it is too large"
    return told if len(told) <= _MOST_TOLD else f"{told[:_MOST_TOLD]} …"
