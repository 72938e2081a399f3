"""`write_texts`: prompts continued together, each only as long as its text goes on.

Letters: B sequences, V vocabulary.
"""

from collections.abc import Sequence

import torch

from moesaic.config.infer import GenerateConfig
from moesaic.data.tokenizer import Tokenizer
from moesaic.eval.encode import Ids
from moesaic.eval.requests import GenerationAnswer
from moesaic.infer.blocks import BLOCK, Held
from moesaic.infer.decoder import Decoder, Fed, build_decoder
from moesaic.infer.generate import pool_for
from moesaic.infer.prompts import encode_prompts
from moesaic.infer.sample import sample
from moesaic.infer.text import Written
from moesaic.model.transformer import Transformer


def shared_beginning(rows: Sequence[Ids]) -> int:
    """Tokens that all rows begin with, in whole blocks; at least one of every row is not among
    them, and of a row alone none is."""
    if len(rows) < 2:
        return 0
    first, last = min(rows), max(rows)  # of rows in order, the two that have least in common
    most = min(map(len, rows)) - 1
    pairs = zip(first[:most], last[:most], strict=True)
    alike = next((place for place, (one, other) in enumerate(pairs) if one != other), most)
    return alike - alike % BLOCK


def write_texts(
    model: Transformer,
    rows: Sequence[Ids],
    shared: int,
    tokenizer: Tokenizer,
    config: GenerateConfig,
) -> list[GenerationAnswer]:
    """What a model writes after each prompt.

    What the prompts begin with alike is fed once, and a text that has ended is fed no more.

    Args:
        model: writes.
        rows: prompts in tokens.
        shared: as `shared_beginning` says of these and perhaps of more rows.
        tokenizer: makes texts, and knows what ends them.
        config: how tokens are drawn; the first prompt's with its seed, the next one's with the
            next.

    Raises:
        RequestError: if a prompt is too long, or the model gives no numbers.
    """
    encode_prompts(rows, model.config, tokenizer, config.max_new_tokens)
    lengths = [len(row) - shared + config.max_new_tokens for row in rows]
    decoder = build_decoder(model, pool_for(model, [shared, *lengths]))
    held = _begun(decoder, rows, shared)
    texts = [Written.begin(model.config, tokenizer, config) for _ in rows]
    generators = [torch.Generator().manual_seed(config.seed + place) for place in range(len(rows))]
    pieces: list[list[str]] = [[] for _ in rows]
    fed = {place: tuple(row[shared:]) for place, row in enumerate(rows)}
    while fed:
        found = decoder.feed([Fed(held[place], ids) for place, ids in fed.items()])
        logits_BV = torch.cat([one.logits_TV for one in found])
        tokens = sample(logits_BV, config, [generators[place] for place in fed]).tolist()
        for place, token in zip(fed, tokens, strict=True):
            pieces[place].append(texts[place].add(token))
        fed = {
            place: (token,)
            for place, token in zip(fed, tokens, strict=True)
            if texts[place].ending is None
        }
    return [GenerationAnswer("".join(each), len(each)) for each in pieces]


def _begun(decoder: Decoder, rows: Sequence[Ids], shared: int) -> list[Held]:
    """Sequences that hold what the rows begin with."""
    pool = decoder.pool
    held = [Held(pool) for _ in rows]
    if shared:
        decoder.feed([Fed(held[0], tuple(rows[0][:shared]), "none")])
        for one in held[1:]:
            for block in held[0].blocks:
                pool.share(block)
            one.blocks, one.length = list(held[0].blocks), shared
    return held
