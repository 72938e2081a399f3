"""Requests as rows of ids, cut and split as lm-evaluation-harness does, so that scores compare."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from moesaic.data.chat import ChatTemplate
from moesaic.data.tokenizer import SETTINGS_FILE, Tokenizer
from moesaic.errors import DataError, RequestError
from moesaic.eval.requests import Likelihood

Ids = tuple[int, ...]

_SHOWN = 60
"""Characters of a text that a message shows."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Tokens of which the probability is asked, and what the model is fed to tell it."""

    fed: Ids
    tokens: Ids
    """Those predicted at the last positions of `fed`; each but the last is fed itself."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """Texts to ids for one model.

    Names of special tokens in a text are those tokens, and a text that begins with BOS gets no
    second one.
    """

    tokenizer: Tokenizer
    max_length: int
    """Most tokens to feed."""

    def likelihoods(self, requests: Sequence[Likelihood]) -> list[Asked]:
        """What to feed for each; together, since one context often has many continuations.

        Spaces that end a context are read with the continuation. Both are encoded together, and
        what follows the length of the context alone is the continuation. Of what is too long the
        beginning is left out.

        Raises:
            RequestError: if a continuation has no token of its own, or more than can be fed.

        Source: lm-evaluation-harness (github.com/EleutherAI/lm-evaluation-harness), its class for
            transformers models.
        """
        halves = [_without_spaces(request) for request in requests]
        texts = {context for context, _ in halves} | {"".join(half) for half in halves}
        ids = self._begin(sorted(texts))
        return [
            self._asked(request, *half, ids) for request, half in zip(requests, halves, strict=True)
        ]

    def windows(self, text: str) -> list[Asked]:
        """What to feed so that every token of a text is predicted once.

        The first token follows BOS, or EOS where there is none; a tokenizer that begins texts with
        BOS has it predicted too, since published figures count it. A text longer than can be fed is
        cut into windows that do not overlap, except the last: it is filled up from the one before,
        so that its tokens see as much as they can.

        Source: lm-evaluation-harness, ``get_rolling_token_windows`` with a context of one token.
        """
        return list(_windows(self._begin([text])[text], self.prefix_id, self.max_length))

    def prompts(self, texts: Sequence[str], max_new_tokens: int, chat: bool) -> list[Ids]:
        """Ids to continue; of a prompt that leaves no room for the answer the beginning is left
        out.

        Args:
            texts: the prompts.
            max_new_tokens: room to keep for each.
            chat: whether each is the user's turn of a conversation.

        Raises:
            RequestError: if an answer may be as long as what the model sees.
            DataError: if a conversation is asked for and the tokenizer has no template.
        """
        room = self.max_length - max_new_tokens
        if room < 1:
            raise RequestError(
                f"max_new_tokens={max_new_tokens} leaves no room for a prompt in "
                f"max_length={self.max_length}; lower max_new_tokens or raise max_length"
            )
        if chat and self.tokenizer.chat_template is None:
            raise DataError(
                "chat=true, but the tokenizer has no chat template; add chat_template to "
                f"{SETTINGS_FILE}, or leave chat out"
            )
        if chat:
            template = ChatTemplate.of(self.tokenizer)
            texts = [template.render([{"role": "user", "content": text}], True) for text in texts]
        ids = self._begin(sorted(set(texts)))
        return [tuple((ids[text] or [self.prefix_id])[-room:]) for text in texts]

    @property
    def prefix_id(self) -> int:
        """The token before a text: BOS, or EOS where there is none."""
        found = (self.tokenizer.bos_id, *self.tokenizer.eos_ids)
        prefix = next((id_ for id_ in found if id_ is not None), None)
        if prefix is None:
            raise DataError(
                "the tokenizer names no token that could stand before a text; set bos_token or "
                f"eos_token in {SETTINGS_FILE}"
            )
        return prefix

    def _begin(self, texts: Sequence[str]) -> dict[str, list[int]]:
        """Ids of texts as the beginning of what the model sees."""
        bos = [self.prefix_id] if self.tokenizer.adds_bos else []
        encoded = self.tokenizer.encode_batch(texts, special=True)
        return {
            text: ids if ids[:1] == bos else [*bos, *ids]
            for text, ids in zip(texts, encoded, strict=True)
        }

    def _asked(
        self,
        request: Likelihood,
        context: str,
        continuation: str,
        ids: Mapping[str, Sequence[int]],
    ) -> Asked:
        if context:
            whole, before = list(ids[context + continuation]), len(ids[context])
        else:
            found = self.tokenizer.encode(continuation, special=True)
            whole = found if found[:1] == [self.prefix_id] else [self.prefix_id, *found]
            before = 1
        tokens = whole[before:]
        if not tokens:
            raise RequestError(
                f"the continuation {_shown(request.continuation)} after {_shown(request.context)} "
                "has no token of its own; give one that does not merge with the context"
            )
        if len(tokens) > self.max_length:
            raise RequestError(
                f"the continuation {_shown(request.continuation)} has {len(tokens)} tokens, more "
                f"than max_length={self.max_length}; raise max_length, or ask for a rolling "
                "likelihood"
            )
        return Asked(tuple(whole[-(self.max_length + 1) : -1]), tuple(tokens))


def _without_spaces(request: Likelihood) -> tuple[str, str]:
    """The context without the spaces that end it, and the continuation with them."""
    context = request.context.rstrip()
    return context, request.context[len(context) :] + request.continuation


def _windows(ids: Sequence[int], prefix: int, most: int) -> Iterator[Asked]:
    for start in range(0, len(ids), most):
        end = min(start + most, len(ids))
        fed = (prefix, *ids[: end - 1]) if start == 0 else ids[end - 1 - most : end - 1]
        yield Asked(tuple(fed), tuple(ids[start:end]))


def _shown(text: str) -> str:
    """The end of a text, for a message."""
    return repr(text if len(text) <= _SHOWN else "…" + text[-_SHOWN:])
