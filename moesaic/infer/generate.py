"""Texts continued by a model: the prompts in one pass, then one pass per token or fewer.

Letters: B sequences, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moesaic.config.infer import GenerateConfig, Speculate
from moesaic.config.model import ModelConfig
from moesaic.config.published import read_config
from moesaic.config.serve import ServeConfig
from moesaic.data.tokenizer import TOKENIZER_FILE, Tokenizer
from moesaic.errors import ConfigError, RequestError
from moesaic.infer.blocks import BLOCK, BlockPool, Held
from moesaic.infer.decoder import Fed, build_decoder
from moesaic.infer.grammar import Grammar, Grammars, forbid
from moesaic.infer.job import Job
from moesaic.infer.load import load_held
from moesaic.infer.pace import Counts
from moesaic.infer.prompts import Prompt, encode_prompts
from moesaic.infer.sample import sample
from moesaic.infer.sequence import Sequence as Running
from moesaic.infer.speculative import Drafts
from moesaic.infer.steps import Batch
from moesaic.infer.structured import structured_grammar
from moesaic.infer.text import Ending, Written
from moesaic.model.transformer import Transformer
from moesaic.units import parse_bytes

Structured = Mapping[str, Any] | Grammar
"""What texts have to be: see `structured_grammar`, or made by `Grammars`."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one new token adds to one text."""

    prompt: int
    """Which prompt it continues, counted from 0."""
    token: int
    text: str
    """The text that is certain now; empty inside a character, or without a tokenizer."""
    ending: Ending | None
    """Why this is the last piece; None while more follow."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """What a model wrote after one prompt."""

    text: str
    """Without the prompt; empty without a tokenizer."""
    ids: tuple[int, ...]
    """Every token drawn, those that ended the text too."""
    prompt_ids: tuple[int, ...]
    ending: Ending
    speculation: Counts | None = None
    """What drafts came to; None without them."""


def generate(
    model: Transformer | Path | str,
    prompts: str | Sequence[Prompt],
    tokenizer: Tokenizer | None = None,
    *,
    speculate: Speculate = "never",
    memory: int | str | None = None,
    structured_outputs: Structured | None = None,
    **settings: Any,
) -> list[Continuation]:
    """Continue prompts, all in one batch; each text is what its prompt would give alone.

    Args:
        model: a model, or a checkpoint folder, whose tokenizer is taken and whose weights are
            loaded in float32.
        prompts: one text, or several prompts, each a text or ids.
        tokenizer: needed for prompts or stops that are texts, and for the text of the result.
        speculate: whether the model's prediction module drafts tokens, which changes none of
            them: always, never, or while that is measured to be faster.
        memory: most bytes of a folder's weights, as a number or as ``8GiB``; experts that do not
            fit are read when they are chosen. None holds all.
        structured_outputs: what each text has to be, by the names of the server, as ``{"json":
            schema}``, ``{"regex": "[0-9]{4}"}``, ``{"choice": ["yes", "no"]}`` or ``{"grammar":
            text}``. A text that ends for its length is only the beginning of one.
        settings: those of `GenerateConfig`, as ``max_new_tokens=64, temperature=0``.

    Returns:
        One continuation per prompt, in their order.

    Raises:
        RequestError: if a prompt is empty, too long, or not of the model's vocabulary, or if drafts
            are asked for and the model has no prediction module, or if what texts have to be cannot
            be enforced.
        ConfigError: for a wrong setting.
    """
    request = _Request.of(model, prompts, tokenizer, memory, structured_outputs, settings)
    drafted = request.drafted(speculate)
    pieces: list[list[Piece]] = [[] for _ in request.rows]
    for piece in drafted.pieces() if drafted else request.pieces():
        pieces[piece.prompt].append(piece)
    counts = [each.counts for each in drafted.texts] if drafted else [None] * len(request.rows)
    return [
        Continuation(
            text="".join(piece.text for piece in row_pieces),
            ids=tuple(piece.token for piece in row_pieces),
            prompt_ids=tuple(row),
            ending=row_pieces[-1].ending or "length",
            speculation=count,
        )
        for row, row_pieces, count in zip(request.rows, pieces, counts, strict=True)
    ]


def stream(
    model: Transformer | Path | str,
    prompts: str | Sequence[Prompt],
    tokenizer: Tokenizer | None = None,
    *,
    speculate: Speculate = "never",
    memory: int | str | None = None,
    structured_outputs: Structured | None = None,
    **settings: Any,
) -> Iterator[Piece]:
    """`generate`, piece by piece as tokens are drawn; mistakes are raised at the call."""
    request = _Request.of(model, prompts, tokenizer, memory, structured_outputs, settings)
    drafted = request.drafted(speculate)
    return drafted.pieces() if drafted else request.pieces()


@dataclass(frozen=True, slots=True)
class _Request:
    """What was asked for, checked."""

    model: Transformer
    rows: list[list[int]]
    tokenizer: Tokenizer | None
    config: GenerateConfig
    grammar: Grammar | None

    @classmethod
    def of(
        cls,
        model: Transformer | Path | str,
        prompts: str | Sequence[Prompt],
        tokenizer: Tokenizer | None,
        memory: int | str | None,
        structured: Structured | None,
        settings: dict[str, Any],
    ) -> "_Request":
        config = GenerateConfig.parse(settings)
        is_folder = not isinstance(model, Transformer)
        if is_folder and tokenizer is None and (Path(model) / TOKENIZER_FILE).is_file():
            tokenizer = Tokenizer.load(model)
        shape = read_config(model) if is_folder else model.config
        grammar = _grammar(structured, shape, tokenizer)
        if is_folder:
            n_bytes = parse_bytes(memory) if isinstance(memory, str) else memory
            model = load_held(model, memory=n_bytes)
        elif memory is not None:
            raise ConfigError(
                f"memory={memory} bounds what is loaded from a folder; give the folder of the "
                "checkpoint, or leave memory out"
            )
        if config.stop and tokenizer is None:
            raise RequestError(
                f"stop={config.stop!r} needs a tokenizer; give tokenizer, or leave stop out"
            )
        rows = encode_prompts(prompts, model.config, tokenizer, config.max_new_tokens)
        return cls(model, rows, tokenizer, config, grammar)

    def drafted(self, speculate: Speculate) -> "_Drafted | None":
        """The same with drafts, if any are made."""
        if not Drafts.of(self.model.config, speculate, deterministic=False):
            return None
        pool = pool_for(self.model, [len(row) + self.config.max_new_tokens for row in self.rows])
        batch = Batch(build_decoder(self.model, pool), ServeConfig(speculate=speculate))
        return _Drafted(batch, [self._begin(place, row) for place, row in enumerate(self.rows)])

    def pieces(self) -> Iterator[Piece]:
        """Pieces of all texts in the order of their tokens, until every text has ended."""
        texts = [self._written() for _ in self.rows]
        for tokens in draw_tokens(self.model, self.rows, self.config, texts):
            for prompt, (text, token) in enumerate(zip(texts, tokens, strict=True)):
                if text.ending is None:
                    certain = text.add(token)
                    yield Piece(prompt, token, certain, text.ending)
            if all(text.ending for text in texts):
                return

    def _written(self) -> Written:
        return Written.begin(self.model.config, self.tokenizer, self.config, self.grammar)

    def _begin(self, place: int, row: Sequence[int]) -> Running:
        settings = self.config.changed(seed=self.config.seed + place)
        return Running.begin(Job(tuple(row), settings), self._written())


@dataclass(frozen=True, slots=True)
class _Drafted:
    """Texts that a running batch writes together, up to two tokens of each in a pass."""

    batch: Batch
    texts: list[Running]

    def pieces(self) -> Iterator[Piece]:
        """See `_Request.pieces`."""
        for step in self.batch.write(self.texts):
            for prompt, new in enumerate(step):
                for piece in new:
                    yield Piece(prompt, piece.token, piece.text, piece.ending)


def _grammar(
    structured: Structured | None, model: ModelConfig, tokenizer: Tokenizer | None
) -> Grammar | None:
    """What texts have to be, compiled."""
    if structured is None or isinstance(structured, Grammar):
        return structured
    if tokenizer is None:
        raise RequestError(
            f"structured_outputs={dict(structured)} needs a tokenizer; give tokenizer, or leave "
            "structured_outputs out"
        )
    return structured_grammar(structured, lambda: Grammars(model, tokenizer))


def draw_tokens(
    model: Transformer,
    rows: Sequence[Sequence[int]],
    config: GenerateConfig,
    texts: Sequence[Written] = (),
) -> Iterator[list[int]]:
    """The tokens that follow rows of ids, one of every row at a time; nothing ends a row early.

    Args:
        model: what they are fed to.
        rows: ids, one row for each text.
        config: how tokens are drawn.
        texts: what each row's tokens are added to before the next are drawn; where a text has a
            grammar, they follow it.
    """
    pool = pool_for(model, [len(row) + config.max_new_tokens for row in rows])
    decoder = build_decoder(model, pool)
    held = [Held(pool) for _ in rows]
    generators = [torch.Generator().manual_seed(config.seed + row) for row in range(len(rows))]
    fed = [Fed(one, tuple(row)) for one, row in zip(held, rows, strict=True)]
    for _ in range(config.max_new_tokens):
        logits_BV = torch.cat([found.logits_TV for found in decoder.feed(fed)])
        courses = [None if text.ending else text.course for text in texts]
        logits_BV, failed = forbid(logits_BV, courses)
        for error in failed.values():
            raise error
        tokens = sample(logits_BV, config, generators).tolist()
        yield tokens
        fed = [Fed(one, (token,)) for one, token in zip(held, tokens, strict=True)]


def pool_for(model: Transformer, lengths: Sequence[int]) -> BlockPool:
    """A pool for sequences of these lengths, in the dtype the model computes in."""
    weight = model.model.embed_tokens.weight
    n_blocks = sum(-(-length // BLOCK) for length in lengths)
    dtype = model.compute_dtype or weight.dtype
    return BlockPool(model.config, n_blocks, dtype=dtype, device=weight.device)
