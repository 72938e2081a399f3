"""Documents packed into one row are learned from as if each stood alone."""

from collections.abc import Callable

import pytest
import torch
from models import gradients, random_ids, random_model
from torch import Tensor
from torch.nn import functional as F

from moesaic.config.model import ModelConfig
from moesaic.data.batch import Batch
from moesaic.kernels.reference import IGNORED
from moesaic.model.transformer import ModelLoss, Transformer

Build = Callable[..., ModelConfig]

FAMILIES = pytest.mark.parametrize("family", ["v1", "v2", "v3"])
LENGTHS = (11, 1, 17, 2)


def documents(config: ModelConfig) -> list[tuple[Tensor, Tensor]]:
    """Ids and labels of each document; the last token of one has nothing to predict."""
    pairs = []
    for length in LENGTHS:
        ids_BS = random_ids(config, 1, length, seed=length)
        pairs.append((ids_BS, torch.cat((ids_BS[:, 1:], torch.full((1, 1), IGNORED)), dim=1)))
    return pairs


def packed(config: ModelConfig) -> Batch:
    """One row of all documents."""
    ids, labels = zip(*documents(config), strict=True)
    return Batch(
        ids_BS=torch.cat(ids, dim=1),
        labels_BS=torch.cat(labels, dim=1),
        positions_BS=torch.cat([torch.arange(n) for n in LENGTHS])[None],
        documents_BS=torch.repeat_interleave(torch.tensor(LENGTHS))[None],
    )


def padded(row: Batch, pad: int) -> Batch:
    """The row with nine ids of padding after it."""
    return Batch(
        ids_BS=F.pad(row.ids_BS, (0, 9), value=pad),
        labels_BS=F.pad(row.labels_BS, (0, 9), value=IGNORED),
        positions_BS=torch.cat((row.positions_BS, torch.arange(9)[None]), dim=1),
        documents_BS=F.pad(row.documents_BS, (0, 9), value=len(LENGTHS)),
    )


def loss_of(model: Transformer, row: Batch) -> ModelLoss:
    return model.loss(row.ids_BS, row.labels_BS, row.positions_BS, row.documents_BS)


def sums(loss: ModelLoss) -> Tensor:
    return torch.stack([loss.next_token, *loss.mtp])


def counts(loss: ModelLoss) -> list[int]:
    return [int(count) for count in (loss.tokens, *loss.mtp_tokens)]


def build(tiny_config: Build, family: str) -> tuple[ModelConfig, Transformer]:
    depths = {"num_nextn_predict_layers": 2} if family == "v3" else {}
    config = tiny_config(family, initializer_range=0.2, **depths)
    return config, random_model(config, dtype="float64")


@FAMILIES
def test_packed_equals_separate(tiny_config: Build, family: str):
    """Losses of every prediction depth, their token counts, and every gradient."""
    config, model = build(tiny_config, family)
    together = loss_of(model, packed(config))
    sums(together).sum().backward()
    packed_gradients = gradients(model)

    alone = [model.loss(*document) for document in documents(config)]
    torch.stack([sums(loss) for loss in alone]).sum().backward()
    # Scores are computed in float32 where the weights are; in float64 all agree to its precision.
    torch.testing.assert_close(sums(together), torch.stack([sums(a) for a in alone]).sum(0))
    assert counts(together) == [sum(depth) for depth in zip(*map(counts, alone), strict=True)]
    torch.testing.assert_close(packed_gradients, gradients(model))


@FAMILIES
def test_packed_logits_equal_separate_ones(tiny_config: Build, family: str):
    config, model = build(tiny_config, family)
    row = packed(config)
    together = model(row.ids_BS, row.positions_BS, row.documents_BS).split(LENGTHS, dim=1)
    for logits, (ids_BS, _) in zip(together, documents(config), strict=True):
        torch.testing.assert_close(logits, model(ids_BS))


@FAMILIES
def test_what_pads_a_row_changes_nothing(tiny_config: Build, family: str):
    """Padding is a document of its own with nothing to learn, whatever its ids."""
    config, model = build(tiny_config, family)
    row = packed(config)
    unpadded = loss_of(model, row)
    for pad in (0, 7, 63):
        loss = loss_of(model, padded(row, pad))
        torch.testing.assert_close(sums(loss), sums(unpadded))
        assert counts(loss) == counts(unpadded)


@FAMILIES
def test_rows_of_a_batch_do_not_see_one_another(tiny_config: Build, family: str):
    config, model = build(tiny_config, family)
    ids_BS, labels_BS = random_ids(config, 3, 15), random_ids(config, 3, 15, seed=1)
    together = model.loss(ids_BS, labels_BS)
    rows = zip(ids_BS.split(1), labels_BS.split(1), strict=True)
    alone = torch.stack([sums(model.loss(ids, labels)) for ids, labels in rows])
    torch.testing.assert_close(sums(together), alone.sum(0))


@FAMILIES
def test_a_token_does_not_see_later_ones(tiny_config: Build, family: str):
    config, model = build(tiny_config, family)
    ids_BS, other_BS = random_ids(config, 1, 15), random_ids(config, 1, 15, seed=1)
    changed_BS = torch.cat((ids_BS[:, :9], other_BS[:, 9:]), dim=1)
    torch.testing.assert_close(model(ids_BS)[:, :9], model(changed_BS)[:, :9])
