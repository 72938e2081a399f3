"""Padded and packed rows against transformers, which takes a mask or one document at a time."""

from collections.abc import Callable

import pytest
import torch
from models import random_ids, random_model
from parity.twin import transformers_twin
from torch import Tensor

from moesaic.config.model import ModelConfig

pytestmark = pytest.mark.parity

FAMILIES = pytest.mark.parametrize("family", ["v2", "v3"])
LENGTHS = (20, 13, 1)

Build = Callable[..., ModelConfig]


def parity_config(build: Build, family: str) -> ModelConfig:
    return build(family, num_nextn_predict_layers=0, initializer_range=0.2)


def held(lengths: tuple[int, ...], side: str) -> Tensor:
    """bool [B, S], where rows of these lengths hold tokens and not padding."""
    positions = torch.arange(max(lengths))
    ends = torch.tensor(lengths).unsqueeze(1)
    return positions < ends if side == "right" else positions >= max(lengths) - ends


@FAMILIES
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_as_a_document_equals_an_attention_mask(tiny_config: Build, family: str, side: str):
    config = parity_config(tiny_config, family)
    model = random_model(config)
    held_BS = held(LENGTHS, side)
    ids_BS = random_ids(config, *held_BS.shape)
    positions_BS = (held_BS.cumsum(1) - 1).clamp(min=0)
    logits_BSV = model(ids_BS, positions_BS=positions_BS, documents_BS=held_BS.long())
    theirs_BSV = transformers_twin(model)(
        ids_BS, attention_mask=held_BS.long(), position_ids=positions_BS, use_cache=False
    ).logits
    torch.testing.assert_close(logits_BSV[held_BS], theirs_BSV[held_BS], atol=1e-5, rtol=0)


@FAMILIES
def test_packed_documents_equal_documents_alone(tiny_config: Build, family: str):
    config = parity_config(tiny_config, family)
    model = random_model(config)
    twin = transformers_twin(model)
    documents = [random_ids(config, 1, length, seed=length) for length in LENGTHS]
    logits = model(
        torch.cat(documents, dim=1),
        positions_BS=torch.cat([torch.arange(length) for length in LENGTHS])[None],
        documents_BS=torch.repeat_interleave(torch.tensor(LENGTHS))[None],
    )
    for packed, document in zip(logits.split(LENGTHS, dim=1), documents, strict=True):
        alone = twin(document, use_cache=False).logits
        torch.testing.assert_close(packed, alone, atol=1e-5, rtol=0)


@FAMILIES
def test_packed_rows_equal_packed_rows(tiny_config: Build, family: str):
    """transformers tells documents apart by positions that start again."""
    config = parity_config(tiny_config, family)
    model = random_model(config)
    ids_BS = random_ids(config, 2, 30)
    lengths = ((12, 18), (25, 5))
    positions_BS = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    documents_BS = (positions_BS == 0).cumsum(1)
    logits_BSV = model(ids_BS, positions_BS=positions_BS, documents_BS=documents_BS)
    theirs_BSV = transformers_twin(model)(ids_BS, position_ids=positions_BS, use_cache=False).logits
    torch.testing.assert_close(logits_BSV, theirs_BSV, atol=1e-5, rtol=0)
