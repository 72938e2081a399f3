import math

import pytest
import torch

from moesaic.data.batch import Batch
from moesaic.data.bpe import train_bpe
from moesaic.model.build import build_model
from moesaic.train.evaluate import Evaluation, HeldOut, evaluate, text_bytes


def test_perplexity_and_bits_per_byte_follow_from_the_loss():
    found = Evaluation(loss=math.log(8), tokens=30, n_bytes=45)
    assert found.perplexity == pytest.approx(8)
    assert found.bits_per_byte == pytest.approx(3 * 30 / 45)


def test_a_loss_too_great_for_a_perplexity_has_an_infinite_one():
    assert Evaluation(loss=800.0, tokens=1, n_bytes=1).perplexity == math.inf


def rows(ids: list[list[int]], labels: list[list[int]]) -> Batch:
    ids_BS, labels_BS = torch.tensor(ids), torch.tensor(labels)
    positions_BS = torch.arange(ids_BS.shape[1]).expand_as(ids_BS).clone()
    return Batch(ids_BS, labels_BS, positions_BS, torch.zeros_like(ids_BS))


def test_the_loss_is_a_mean_over_learned_tokens_of_all_batches(tiny_config):
    model = build_model(tiny_config("v3"))
    batches = (
        rows([[3, 4, 5], [6, 7, 8]], [[4, 5, -100], [7, 8, 9]]),
        rows([[9, 1, 2]], [[-100, 2, 3]]),
    )
    log_p = [
        model(batch.ids_BS)[b, s].log_softmax(-1)[label].item()
        for batch in batches
        for b, row in enumerate(batch.labels_BS.tolist())
        for s, label in enumerate(row)
        if label != -100
    ]
    found = evaluate(model, HeldOut(batches, n_bytes=20))
    assert found.tokens == len(log_p) == 7
    assert found.loss == pytest.approx(-sum(log_p) / 7, rel=1e-5)


def test_evaluating_leaves_no_gradient_and_moves_nothing(tiny_config):
    model = build_model(tiny_config("v3"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate(model, HeldOut((rows([[3, 4]], [[4, 5]]),), n_bytes=1))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_bytes_are_those_of_the_learned_text_without_special_tokens():
    tokenizer = train_bpe(["naïve 词 tokens"] * 3, 280)
    ids = [*tokenizer.encode("naïve 词"), tokenizer.eos_id]
    assert text_bytes(rows([ids], [ids]), tokenizer) == len("naïve 词".encode())
    learned = [-100, *ids[1:]]
    assert text_bytes(rows([ids], [learned]), tokenizer) < len("naïve 词".encode())
