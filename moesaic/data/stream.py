"""`TextStream`: the text of tokens that arrive one at a time."""

from moesaic.data.tokenizer import Tokenizer

_INCOMPLETE = "\ufffd"


class TextStream:
    """Decodes as tokens come, holding back characters whose bytes are not all there.

    The pieces of `push` and the rest from `finish` join to `Tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._ids: list[int] = []  # from the last piece given out: it decides the next one's spaces
        self._given = 0

    def push(self, id_: int) -> str:
        """The text that one more token completes; often empty for part of a character."""
        self._ids.append(id_)
        text = self._rest()
        if not text or text.endswith(_INCOMPLETE):
            return ""
        self._ids, self._given = self._ids[self._given :], len(self._ids) - self._given
        return text

    def finish(self) -> str:
        """The text held back; bytes that are no character become U+FFFD."""
        text = self._rest()
        self._ids, self._given = [], 0
        return text

    def _rest(self) -> str:
        before = self._tokenizer.decode(self._ids[: self._given], self._skip_special)
        return self._tokenizer.decode(self._ids, self._skip_special)[len(before) :]
