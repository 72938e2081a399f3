"""Drafts are made as long as they are measured to gain time, and no longer."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from infer.echo import echo
from models import random_model
from torch import Tensor

from moesaic.config.infer import GenerateConfig
from moesaic.config.presets import get_preset
from moesaic.infer.decoder import Fed, Found, Known, TorchDecoder
from moesaic.infer.generate import draw_tokens, pool_for
from moesaic.infer.pace import Pace
from moesaic.infer.speculative import Speculation
from moesaic.model.transformer import Transformer

TINY = get_preset("tiny-v3").changed(num_hidden_layers=1, first_k_dense_replace=0, vocab_size=40)
GREEDY = GenerateConfig(max_new_tokens=120, temperature=0)


@dataclass
class Clocked:
    """A decoder whose calls take as long as they are told to."""

    decoder: TorchDecoder
    passes_s: Sequence[float]
    """Of a pass of one token, and of two."""
    draft_s: float
    now: float = 0.0
    fed: list[int] = field(default_factory=list)

    @property
    def model(self) -> Transformer:
        return self.decoder.model

    @property
    def pool(self):
        return self.decoder.pool

    def feed(self, fed: Sequence[Fed]) -> list[Found]:
        n = len(fed[0].ids)
        self.now += self.passes_s[min(n, 2) - 1]
        self.fed.append(n)
        return self.decoder.feed(fed)

    def draft(self, known: Sequence[Known]) -> Tensor:
        self.now += self.draft_s
        return self.decoder.draft(known)


def write(model: Transformer, two_s: float, draft_s: float) -> tuple[Speculation, Clocked]:
    """A text after [3, 1], where a pass of one token takes a second."""
    pool = pool_for(model, [2 + GREEDY.max_new_tokens])
    decoder = Clocked(TorchDecoder(model, pool), (1.0, two_s), draft_s)
    made = Speculation(decoder, [[3, 1]], GREEDY, Pace(True, lambda: decoder.now))
    text = [token for [tokens] in made.draw() for token in tokens]
    assert text == [token for [token] in draw_tokens(model, [[3, 1]], GREEDY)]
    return made, decoder


@pytest.mark.parametrize(
    ("two_s", "draft_s", "drafted"),
    [
        (1.1, 0.1, 51),  # 2 tokens for 1.2 s; 17 passes without, to know what these take
        (1.6, 0.3, 51),
        (1.5, 0.6, 3),  # more than twice as long: that is seen at once
        (4.0, 0.0, 3),
    ],
)
def test_right_drafts_go_on_where_they_cost_less_than_a_second_pass(
    two_s: float, draft_s: float, drafted: int
):
    made, decoder = write(echo(TINY), two_s, draft_s)
    assert made.pace.cost == pytest.approx(two_s + draft_s)
    assert made.counts[0].drafts == drafted == decoder.fed[1:].count(2)
    assert made.counts[0].acceptance == 1


def test_wrong_drafts_end_after_the_trial():
    made, decoder = write(random_model(TINY).requires_grad_(False), 1.05, 0.05)
    assert made.pace.gain < 1
    assert made.counts[0].drafts == 16
    assert decoder.fed[-80:] == [1] * 80


def test_a_pass_without_drafts_takes_as_long_as_without_the_module():
    """During the trial, too: what the module was not fed then it is fed with the next draft."""
    _, decoder = write(echo(TINY), 1.5, 0.6)
    prompt_s = 1.5 + 0.6
    assert decoder.now == pytest.approx(prompt_s + decoder.fed[1:].count(1) + 3 * (1.5 + 0.6))


def test_the_gain_is_tokens_per_pass_over_what_the_pass_costs():
    pace = Pace(may_stop=True)
    for _ in range(40):
        if pace.is_plain_turn:
            pace.add_plain(1.0)
        elif pace.is_trial:
            pace.add_drafted(1.5, [1, 0])
    assert pace.tried == (16, 16)
    assert pace.gain == 1.0
    assert not pace.loses
    pace.add_drafted(1.5, [0, 0])
    assert pace.loses


def test_a_pass_without_drafts_is_timed_again_as_the_text_grows():
    """Both kinds take longer after a long text: the comparison is between passes of now."""
    pace = Pace(may_stop=True)
    for step in range(4000):
        length_s = 1 + step / 1000
        if pace.is_plain_turn:
            pace.add_plain(length_s)
        else:
            pace.add_drafted(1.2 * length_s, [1, 0])
        assert not pace.loses
    assert pace.cost == pytest.approx(1.2, rel=0.05)


def test_a_sampled_text_ends_drafts_too():
    model = random_model(TINY).requires_grad_(False)
    pool = pool_for(model, [130])
    decoder = Clocked(TorchDecoder(model, pool), (1.0, 3.0), 0.5)
    settings = GREEDY.changed(temperature=1.0, top_p=1.0)
    made = Speculation(decoder, [[3, 1]], settings, Pace(True, lambda: decoder.now))
    assert sum(len(tokens) for [tokens] in made.draw()) == 120
    assert made.counts[0].drafts == 3
    assert torch.isfinite(torch.tensor(made.pace.gain))
