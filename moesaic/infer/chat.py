"""`Conversation`: turns with a model, of which only new tokens are read."""

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Self

import torch

from moesaic.config.chat import ChatConfig
from moesaic.config.serve import ServeConfig
from moesaic.data.chat import ChatTemplate
from moesaic.data.chat_templates import TEMPLATES
from moesaic.data.documents import Message
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import DataError, RequestError
from moesaic.infer.blocks import BLOCK, BlockPool, Held
from moesaic.infer.decoder import Decoder, Fed, build_decoder
from moesaic.infer.draft import Ahead
from moesaic.infer.job import Job
from moesaic.infer.load import load_held
from moesaic.infer.sample import sample
from moesaic.infer.sequence import Sequence as Running
from moesaic.infer.steps import Batch
from moesaic.infer.text import Written
from moesaic.model.build import torch_device, torch_dtype

_CHUNK = 256
"""Tokens that are read between two looks at whether to stop."""


class Conversation:
    """What was said, and the model's cache of it.

    A turn is written by the chat template together with all turns before it. As far as its tokens
    are those that the model has seen, they are not read again: in a template that only adds to the
    text that is all but the new message; in one that changes what was written, such as one that
    takes the reasoning out of old answers, the rest is read anew.
    """

    def __init__(self, decoder: Decoder, template: ChatTemplate, config: ChatConfig) -> None:
        """Begin one.

        Args:
            decoder: a model, and a pool whose size is the most that can be said.
            template: how a conversation is written.
            config: how to answer.
        """
        self.system = config.system
        """What the model is told before the conversation; it may be changed between turns."""
        self.turns: list[Message] = []
        """Messages and answers so far."""
        self.n_read = 0
        """Tokens that were read for the last answer, without those of the cache."""
        self._decoder, self._template, self._config = decoder, template, config
        self._held = Held(decoder.pool)
        self._seen: list[int] = []
        self._batch = Batch(decoder, ServeConfig(speculate=config.speculate))
        self.drafts = self._batch.drafts
        """Those of all answers; None where none are made."""
        self._n_ahead = 0
        """Positions that the prediction module has read."""

    @classmethod
    def load(cls, folder: Path | str, config: ChatConfig) -> Self:
        """With the model, the tokenizer and the chat template of a checkpoint folder.

        Raises:
            CheckpointError: if the folder is incomplete or damaged.
            ConfigError: if there is no such device.
            DataError: if it has no tokenizer, or neither it nor the settings name a template.
        """
        tokenizer = Tokenizer.load(folder)
        if config.chat_template is None and tokenizer.chat_template is None:
            names = " or ".join(TEMPLATES)
            raise DataError(
                f"{folder}: the tokenizer has no chat template; choose how a conversation is "
                f"written with --set chat_template={names}"
            )
        device = torch_device(config.device)
        model = load_held(folder, config.dtype, device, config.form, config.memory)
        n_positions = min(config.context, model.config.max_position_embeddings)
        dtype = torch_dtype(config.dtype)
        pool = BlockPool(model.config, -(-n_positions // BLOCK), dtype=dtype, device=device)
        template = ChatTemplate.of(tokenizer, config.chat_template)
        return cls(build_decoder(model, pool, config.form), template, config)

    def reset(self) -> None:
        """Forget all turns; the system message stays."""
        self.turns.clear()

    def answer(self, text: str, stopped: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """The answer to a message, piece by piece.

        Message and answer become turns when the answer ends. One that is stopped stays as far as
        it went; where nothing was said yet, its message is forgotten too, as it is after an error.

        Args:
            text: the message.
            stopped: is asked before every token whether to end here.

        Raises:
            RequestError: if the conversation has grown too long.
            DataError: if the template fails.
        """
        asked = [*self.turns, {"role": "user", "content": text}]
        ids = self._template.encode_prompt(self._with_system(asked))
        config = self._config
        written = Written.begin(self._decoder.model.config, self._template.tokenizer, config)
        written.room = min(config.max_new_tokens, self._room(len(ids)))
        said = ""
        for piece in self._pieces(ids, written, len(self.turns) // 2, stopped):
            said += piece
            yield piece
        if said or written.ending:
            self.turns = [*asked, {"role": "assistant", "content": self._content(asked, said)}]

    def _room(self, n_ids: int) -> int:
        """Tokens that an answer to so many may have."""
        pool, model = self._decoder.pool, self._decoder.model.config
        most = min(self._config.context, pool.n_blocks * pool.block, model.max_position_embeddings)
        if n_ids >= most:
            raise RequestError(
                f"the conversation has {n_ids} tokens and context={most} leaves none for an "
                "answer; begin anew with /reset, or start with a larger --set context (the model "
                f"has {model.max_position_embeddings} positions)"
            )
        return most - n_ids

    def _pieces(
        self, ids: Sequence[int], written: Written, turn: int, stopped: Callable[[], bool]
    ) -> Iterator[str]:
        """Read a prompt, then write until an end, or until stopped."""
        if self.drafts is not None and self.drafts.is_on:
            yield from self._drafted_pieces(ids, written, turn, stopped)
            return
        generator = torch.Generator().manual_seed(self._config.seed + turn)
        self._cut(ids)
        fed = tuple(ids[len(self._seen) :])
        self.n_read = len(fed)
        while len(fed) > _CHUNK and not stopped():
            self._decoder.feed([Fed(self._held, fed[:_CHUNK], "none")])
            self._seen += fed[:_CHUNK]
            fed = fed[_CHUNK:]
        while written.ending is None and not stopped():
            [found] = self._decoder.feed([Fed(self._held, fed)])
            self._seen += fed
            token = int(sample(found.logits_TV, self._config, [generator]))
            fed = (token,)
            yield written.add(token)
        if written.ending is None and written.stream:
            yield written.stream.finish()

    def _drafted_pieces(
        self, ids: Sequence[int], written: Written, turn: int, stopped: Callable[[], bool]
    ) -> Iterator[str]:
        """The same with drafts."""
        self._cut(ids, self._n_ahead)
        self.n_read = len(ids) - len(self._seen)
        settings = self._config.changed(seed=self._config.seed + turn)
        text = Running.begin(Job(tuple(ids), settings), written)
        text.held, text.ahead, text.is_lent = self._held, Ahead.beside(self._held), True
        ahead, steps = text.ahead, self._batch.write([text])
        try:
            while written.ending is None and not stopped():
                for piece in next(steps)[0]:
                    yield piece.text
        finally:
            if text.held is not None:
                self._batch.dismiss(text, "cancelled", None)
            self._seen = text.ids[: self._held.length]
            self._n_ahead = ahead.held.length
        if written.ending is None and written.stream:
            yield written.stream.finish()

    def _cut(self, ids: Sequence[int], n_ahead: int | None = None) -> None:
        """Keep of the cache what a prompt begins with; its last token is always read.

        Args:
            ids: of the prompt.
            n_ahead: positions that the prediction module has, if it is to go on, too: each was read
                with the token after it.
        """
        pairs = zip(self._seen, ids[:-1], strict=False)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if n_ahead is not None:
            same = max(0, min(same - 1, n_ahead))
        self._held.cut(same)
        del self._seen[same:]

    def _with_system(self, turns: Sequence[Message]) -> list[Message]:
        return [{"role": "system", "content": self.system}] * bool(self.system) + list(turns)

    def _content(self, asked: Sequence[Message], said: str) -> str:
        """An answer as the template writes it back to what was said.

        A template may put a space before an answer that its prompt leaves to the model.
        """
        messages = self._with_system(asked)
        prompt = self._template.render(messages, add_generation_prompt=True)
        for content in (said, said.lstrip()):
            turn = {"role": "assistant", "content": content}
            if self._template.render([*messages, turn]).startswith(prompt + said):
                return content
        return said
