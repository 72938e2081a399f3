"""Recorded routing, in the form that ESFT publishes its own.

A folder has a file ``expert_weights_N.txt`` for every layer N. A line is a document: the ids of
the experts that its tokens chose, one token after the other, an empty field, and their gate values
in the same order, all between tabs. Nothing says how many experts a token chooses: the model does.

Letters: T tokens, K experts chosen per token.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from moesaic.analyse.counts import Seen
from moesaic.config.model import ModelConfig
from moesaic.errors import DataError
from moesaic.model.residency import layers_with_experts

_NAME = re.compile(r"expert_weights_(\d+)\.txt")


def read_traces(folder: Path, config: ModelConfig) -> Iterator[dict[int, Seen]]:
    """What every layer did, one document at a time.

    Args:
        folder: of the files.
        config: the model that was recorded.

    Raises:
        DataError: if the files are not those of such a model.

    Source: deepseek-ai/ESFT, results/expert_scores.
    """
    files = _files(folder, config)
    with ExitStack() as opened:
        streams = [opened.enter_context(path.open(encoding="ascii")) for path in files.values()]
        try:
            for number, lines in enumerate(zip(*streams, strict=True), start=1):
                where = [f"{path}, line {number}" for path in files.values()]
                parsed = [_parse(*pair, config) for pair in zip(lines, where, strict=True)]
                if len({len(seen.ids_TK) for seen in parsed}) > 1:
                    raise DataError(f"{where[0]}: layers have different numbers of tokens; {_FIX}")
                yield dict(zip(files, parsed, strict=True))
        except ValueError as error:
            raise DataError(f"{folder}: {error}; {_FIX}") from None


_FIX = "record the routing again, or name the checkpoint it was recorded of"


def _files(folder: Path, config: ModelConfig) -> dict[int, Path]:
    """Layer → its file, ascending."""
    matches = ((_NAME.fullmatch(path.name), path) for path in folder.glob("expert_weights_*.txt"))
    found = {int(match[1]): path for match, path in matches if match}
    wanted = [layer for layer in layers_with_experts(config) if layer < config.num_hidden_layers]
    if sorted(found) != wanted:
        raise DataError(
            f"{folder} has expert_weights_N.txt for the layers {sorted(found)}, the model has "
            f"experts in {wanted}; {_FIX}"
        )
    return {layer: found[layer] for layer in wanted}


def _parse(line: str, where: str, config: ModelConfig) -> Seen:
    """The tokens of one line, best experts first; the order they are recorded in is another."""
    ids, empty, weights = line.rstrip("\n").partition("\t\t")
    if not empty:
        raise DataError(f"{where}: there are no gate values after the experts; {_FIX}")
    chosen, recorded = config.num_experts_per_tok or 1, [int(id) for id in ids.split("\t")]
    values = [float(value) for value in weights.split("\t")]
    if len(recorded) != len(values) or len(recorded) % chosen:
        raise DataError(
            f"{where}: {len(recorded)} experts and {len(values)} gate values are not {chosen} "
            f"(num_experts_per_tok) of each token; {_FIX}"
        )
    if not 0 <= min(recorded) <= max(recorded) < config.experts:
        raise DataError(f"{where}: experts are not all in 0 to {config.experts - 1}; {_FIX}")
    return best_first(
        torch.tensor(recorded).view(-1, chosen), torch.tensor(values).view(-1, chosen)
    )


def best_first(ids_TK: Tensor, weights_TK: Tensor) -> Seen:
    """Choices by falling gate value."""
    weights_TK, order_TK = weights_TK.sort(stable=True, dim=1, descending=True)
    return Seen(ids_TK.gather(1, order_TK), weights_TK)
