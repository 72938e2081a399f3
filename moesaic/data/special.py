"""The tokens that stand for no text, with DeepSeek's names for them."""

from dataclasses import dataclass


def special_token(words: str) -> str:
    """A special token in DeepSeek's spelling: full-width bars, blocks between the words."""
    return "<\uff5c" + words.replace(" ", "\u2581") + "\uff5c>"


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Names of the special tokens of a tokenizer that is to be trained."""

    bos: str
    """Begins a document."""
    eos: str
    """Ends a document, or an answer."""
    pad: str
    """Fills rows."""
    others: tuple[str, ...] = ()
    """Further tokens that ordinary text never produces."""

    @property
    def all(self) -> tuple[str, ...]:
        """Every token, in the order of the ids they get."""
        return (self.bos, self.eos, self.pad, *self.others)


FIM_BEGIN, FIM_HOLE, FIM_END = (special_token(f"fim {part}") for part in ("begin", "hole", "end"))
USER, ASSISTANT = special_token("User"), special_token("Assistant")

DEEPSEEK_TOKENS = SpecialTokens(
    bos=special_token("begin of sentence"),
    eos=special_token("end of sentence"),
    pad=special_token(" pad "),
    others=(FIM_HOLE, FIM_BEGIN, FIM_END, USER, ASSISTANT),
)
"""Names and first ids (0, 1, 2) of the tokenizer published with DeepSeek-V3."""
