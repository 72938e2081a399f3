"""Drafts are made as long as they are measured to gain time, and no longer."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from infer.echo import echo
from jobs import running
from models import random_model
from torch import Tensor

from moesaic.config.infer import GenerateConfig
from moesaic.config.presets import get_preset
from moesaic.config.serve import ServeConfig
from moesaic.infer.decoder import Fed, Found, Known, TorchDecoder
from moesaic.infer.generate import draw_tokens, pool_for
from moesaic.infer.pace import Counts, Pace
from moesaic.infer.steps import Batch
from moesaic.model.transformer import Transformer

TINY = get_preset("tiny-v3").changed(
    num_hidden_layers=1, first_k_dense_replace=0, vocab_size=40, eos_token_id=None
)
GREEDY = GenerateConfig(max_new_tokens=120, temperature=0)


@dataclass
class Clocked:
    """A decoder whose calls take as long as they are told to."""

    decoder: TorchDecoder
    two_s: float
    """Of a pass of two tokens of some sequence; one of one takes a second."""
    draft_s: float
    dear_from: int | None = None
    """Sequences with which two tokens of each take twice as long as of one."""
    now: float = 0.0
    fed: list[list[int]] = field(default_factory=list)

    @property
    def model(self) -> Transformer:
        return self.decoder.model

    @property
    def pool(self):
        return self.decoder.pool

    def feed(self, fed: Sequence[Fed]) -> list[Found]:
        sizes = [len(one.ids) for one in fed]
        is_dear = self.dear_from is not None and len(fed) >= self.dear_from
        self.now += 1.0 if max(sizes) == 1 else 2.5 if is_dear else self.two_s
        self.fed.append(sizes)
        return self.decoder.feed(fed)

    def draft(self, known: Sequence[Known]) -> Tensor:
        self.now += self.draft_s
        return self.decoder.draft(known)


def write(
    model: Transformer, two_s: float, draft_s: float, settings: GenerateConfig = GREEDY
) -> tuple[Pace, Counts, Clocked]:
    """A text after [3, 1]; what is known of drafts, and what they came to."""
    pool = pool_for(model, [2 + settings.max_new_tokens])
    decoder = Clocked(TorchDecoder(model, pool), two_s, draft_s)
    batch = Batch(decoder, ServeConfig(speculate="auto"), lambda: decoder.now)
    text = running(model, [3, 1], settings)
    pieces = [piece.token for [new] in batch.write([text]) for piece in new]
    assert pieces == [token for [token] in draw_tokens(model, [[3, 1]], settings)]
    assert batch.drafts is not None
    return batch.drafts.pace(1), text.counts, decoder


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
    pace, counts, decoder = write(echo(TINY), two_s, draft_s)
    assert pace.cost == pytest.approx(two_s + draft_s)
    assert counts.drafts == drafted == decoder.fed[1:].count([2])
    assert counts.acceptance == 1


def test_wrong_drafts_end_after_the_trial():
    pace, counts, decoder = write(random_model(TINY).requires_grad_(False), 1.05, 0.05)
    assert pace.gain < 1
    assert counts.drafts == 16
    assert decoder.fed[-80:] == [[1]] * 80


def test_a_pass_without_drafts_takes_as_long_as_without_the_module():
    """During the trial, too: what the module was not fed then it is fed with the next draft."""
    _, _, decoder = write(echo(TINY), 1.5, 0.6)
    prompt_s = 1.5
    assert decoder.now == pytest.approx(prompt_s + decoder.fed[1:].count([1]) + 3 * (1.5 + 0.6))


def test_a_sampled_text_ends_drafts_too():
    model = random_model(TINY).requires_grad_(False)
    settings = GREEDY.changed(temperature=1.0, top_p=1.0)
    _, counts, _ = write(model, 3.0, 0.5, settings)
    assert counts.drafts == 3


def test_the_gain_is_tokens_per_pass_over_what_the_pass_costs():
    pace = Pace(may_stop=True)
    for _ in range(40):
        if pace.is_plain_turn:
            pace.add(1.0, None)
        elif pace.is_trial:
            pace.add(1.5, [1, 0])
    assert pace.tried == (16, 16)
    assert pace.gain == 1.0
    assert pace.is_on


def tried(pace: Pace, slow: float, further: list[int], passes: int = 40) -> Pace:
    """A pass with drafts takes 1.2 times as long as one without."""
    for _ in range(passes):
        if pace.is_on:
            pace.add(*((slow, None) if pace.is_plain_turn else (1.2 * slow, further)))
    return pace


def test_drafts_that_seem_to_lose_are_tried_again_and_end_only_if_they_lose_in_turns():
    """Suddenly the machine is busy, and every pass takes twice as long."""
    pace = tried(Pace(may_stop=True), 1.0, [1], passes=50)
    assert pace.has_gained
    pace = tried(pace, 2.0, [1], passes=12)
    assert pace.is_on
    assert pace.is_trial
    pace = tried(pace, 2.0, [1])
    assert pace.has_gained
    assert pace.gain == pytest.approx(2 / 1.2)
    assert not tried(pace, 2.0, [0], passes=200).is_on


def test_what_is_foretold_is_judged_by_the_latest_passes():
    pace = tried(Pace(may_stop=True), 1.0, [1, 1], passes=20_000)
    assert not tried(pace, 1.0, [0, 0], passes=200).is_on


def test_a_pass_without_drafts_is_timed_again_as_the_text_grows():
    """Both kinds take longer after a long text: the comparison is between passes of now."""
    pace = Pace(may_stop=True)
    for step in range(4000):
        length_s = 1 + step / 1000
        if pace.is_plain_turn:
            pace.add(length_s, None)
        else:
            pace.add(1.2 * length_s, [1, 0])
        assert not pace.loses
    assert pace.cost == pytest.approx(1.2, rel=0.05)


def test_drafts_are_judged_by_the_number_of_sequences_in_a_pass():
    """From three on they lose, and end; alone they gain before and afterwards."""
    model = echo(TINY)
    pool = pool_for(model, [160] * 4)
    decoder = Clocked(TorchDecoder(model, pool), 1.1, 0.1, dear_from=3)
    batch = Batch(decoder, ServeConfig(speculate="auto"), lambda: decoder.now)
    alone = running(model, [3, 1], GREEDY.changed(max_new_tokens=150))
    others = [running(model, [n], GREEDY.changed(max_new_tokens=40)) for n in (5, 6, 7)]
    assert batch.enter(alone)
    for _ in range(30):
        batch.step()
    for _ in batch.write(others):
        pass
    before = len(decoder.fed)
    while batch.running:
        batch.step()
    assert batch.drafts is not None
    assert batch.drafts.pace(1).is_on
    assert not batch.drafts.pace(4).is_on
    assert batch.drafts.is_on
    assert decoder.fed.count([2] * 4) == 3
    assert decoder.fed[before:].count([2]) > 10
    assert [piece.token for piece in alone.stream] == [1] * 150
