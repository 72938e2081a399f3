"""Look inside a checkpoint: where the tokens of some domains go, and what the experts are good for.

`study_routing` passes every domain once and keeps counts, so that memory does not grow with the
text. The findings are one JSON object, ``routing.json``. In it ``layers`` names the layers with
experts; every list called *by layer* here has one entry for each, in that order. L layers, E
experts, K chosen per token, D domains in the order of ``domains``. Shares are of 1, losses in nats
per token, information and divergences in bits; ``null`` where there is nothing to tell, and
``left_out`` says why.

``kind``            "routing"
``model``           ``folder``, ``digest``, ``experts`` E, ``chosen`` K, ``shared`` experts, router
                    ``scoring``; ``folder`` and ``digest`` of recorded routing are null
``against``         the same of the other checkpoint, or null
``layers``          their indices; ``prediction_layers`` those of them that predict further tokens
``settings``        what was asked for
``domains``         name → ``source``, ``tokens``, ``loss``, ``stderr``; ``against``: the other
                    checkpoint's ``loss`` and ``stderr``, and by how much this one's is above it
                    (``rise``, ``rise_stderr``, of ``batches`` pairs of batches)
``loads``           name → by layer: ``choices`` [L][E] share of the choices (the token score),
                    ``first`` [L][E] share of the tokens by best choice, ``gate`` [L][E] mean gate
                    value (the gate score), ``max_violation`` (MaxVio), ``entropy`` (of the load, 1
                    is even), ``unused`` experts, ``half``: fewest experts with half the gate mass,
                    ``gate_by_rank`` [L][K] share of a token's gate mass, best choice first,
                    ``uncertainty``: entropy of the router's scores, 1 tells no expert apart
``all_loads``       over all domains, each alike: ``choices``, ``max_violation``, ``entropy``,
                    ``unused``
``specialisation``  null of one domain. ``domains`` in order; by layer: ``information`` between a
                    token's domain and its expert, at most ``most``; ``corrected`` for what chance
                    adds; ``halves``, the same between two halves of one domain, which is what a
                    difference must exceed; ``experts`` [L][E] 0 for every domain alike, 1 for one
                    only; ``favourite`` [L][E] index of the domain with the largest share
``overlap``         ``layers``: four measures [L][D][D]: ``shared`` and ``jaccard`` of the ``top``
                    busiest experts (``by_chance``: shared if drawn), ``cosine`` and ``divergence``
                    (Jensen–Shannon) of the loads; ``mean`` over layers [D][D]; ``halves``: name →
                    the same between two halves of one domain
``coactivation``    null where K is 1. ``even``: ``share`` and ``lift`` if all sets of experts were
                    equally likely; ``layers``: a list of ``tokens``, ``strongest`` (how often an
                    expert's most frequent companion is with it), ``pairs`` (``experts`` i and j,
                    ``tokens`` of both, ``given_first`` P(j|i), ``given_second``, ``lift``), and
                    ``matrix``: ``experts`` and ``share``, rows i, columns j, P(j|i)
``vocabulary``      null of recorded routing. Of the ``token_ids`` that were met first, which make
                    the share ``covered`` of all tokens, and of best choices; by layer of its own
                    ``layers``: ``foretold``, how often a token goes to the expert that it went to
                    most in the other half of the text; ``busiest``, how often that would come true
                    by always naming the busiest expert; ``favourite``, how often a token id goes to
                    the expert it goes to most, mean over ids that occur 8 times (OLMoE's measure,
                    which flatters rare ones)
``coverage``        null without resident experts. ``held`` by layer; ``domains``: name → by layer
                    ``choices``, ``gate``, ``tokens`` that find all their experts; ``mean`` of them,
                    with ``everywhere``, tokens that do in every layer
``weights``         null of recorded routing. ``experts`` and ``router``: cosines of the weights of
                    every two experts, by layer ``mean``, ``deviation``, ``quantiles``
                    (least, 5, 25, 50, 75, 95 %, greatest), ``nearest`` pair, and
                    ``histogram`` over ``edges``. Neurons are aligned by place alone: experts with
                    the same neurons in another order count as unlike
``drift``           null without another checkpoint. ``layers``; ``domains``: name → by layer
                    ``first``: tokens with another best choice, ``choices`` that are others,
                    ``tokens`` with such a choice, ``divergence`` of the scores from those before
                    (Kullback–Leibler), ``before`` [L][E] share of the choices by the other
                    checkpoint, as ``choices`` in ``loads``; beside them ``moved`` [L][E], the
                    change of an expert's weights over their length, and ``router`` [L][E], that of
                    its direction
``ablation``        null unless asked for. ``model`` and ``against`` (or null): ``tokens``,
                    ``natural``, and three curves of points: ``shared`` (shared experts off, with as
                    many routed ones more and without), ``disabled`` (the preferred ``ratio`` of
                    experts passed over), ``chosen`` (another number per token). A point has
                    ``experts`` passed over, ``ratio``, ``chosen``, ``shared``, ``loss``,
                    ``stderr``, ``rise`` over natural, ``rise_stderr`` and the same four of
                    ``domains``. ``redundancy``: mean rise over the ratios, the lower the more
                    redundant. ``left_out``: experiment → why
``left_out``        figure → why it is null
``versions`` · ``hardware`` · ``seconds``
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moesaic.analyse.figures import FIGURES, rounded
from moesaic.analyse.passes import from_text, from_traces
from moesaic.analyse.sources import Source
from moesaic.analyse.study import OnTokens, Study, natural_layers
from moesaic.analyse.tables import write_tables
from moesaic.checkpoint.atomic import new_file
from moesaic.config.analyse import RoutingConfig
from moesaic.config.published import read_config
from moesaic.esft.select import Selection, read_selection
from moesaic.esft.shard import ShardManifest
from moesaic.runlog import hardware, versions

RESULT = "routing.json"
"""The file that `Findings.save` writes, beside tables for each figure."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found, in numbers."""

    values: dict[str, Any]
    """As in ``routing.json``."""
    study: Study
    """The counts they were made of."""

    def save(self, folder: Path) -> None:
        """Write routing.json and a CSV file for every figure.

        Args:
            folder: is made where there is none.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with new_file(folder / RESULT) as file:
            file.write(json.dumps(self.values, ensure_ascii=False).encode() + b"\n")
        write_tables(self.values, folder)


def study_routing(
    folder: Path,
    sources: Sequence[Source],
    settings: RoutingConfig,
    against: Path | None = None,
    on_tokens: OnTokens | None = None,
    on_layer: Callable[[int], None] | None = None,
) -> Findings:
    """See what a checkpoint does with the tokens of some domains.

    Args:
        folder: the checkpoint; for recorded routing its config.json is enough.
        sources: the domains.
        settings: how much to read, and what else to measure.
        against: another checkpoint with the same tokenizer, such as the one it was trained from.
        on_tokens: called with a domain and how many of its tokens have passed.
        on_layer: called with a layer before its weights are read.

    Raises:
        ConfigError: if the model has no experts or is a slice, or what is asked for does not fit.
        CheckpointError: if a checkpoint cannot be read.
        DataError: if a domain has no tokens, or recorded routing is of another model.
    """
    start, config = time.monotonic(), read_config(folder)
    study = Study(config, settings, read_resident(settings.resident), expected=len(sources))
    left_out: dict[str, str] = {}
    if sources[0].trace is None:
        parts = from_text(study, folder, sources, against, left_out, on_tokens, on_layer)
    else:
        parts = from_traces(study, sources, against, left_out)
    layers = natural_layers(study)
    figures = {name: figure(study) for name, figure in FIGURES.items()}
    for source in sources:
        figures["domains"][source.name]["source"] = source.place
    values = {
        "kind": "routing",
        "model": None,
        "against": None,
        "layers": list(layers),
        "prediction_layers": [layer for layer in layers if layer >= config.num_hidden_layers],
        "settings": settings.model_dump(mode="json"),
        **figures,
        **parts,
        "left_out": {**_why(study, figures), **left_out},
    }
    gpu = torch.cuda.get_device_name() if study.device == "cuda" else None
    made = {"versions": versions(), "hardware": hardware(gpu), "seconds": time.monotonic() - start}
    return Findings({**rounded(values), **made}, study)


def read_resident(path: str | None) -> Selection | None:
    """The experts that a selection's file, or a shard's folder, names.

    Raises:
        ConfigError: if the file is no selection.
        ShardError: if the folder is no shard.
    """
    if path is None:
        return None
    return ShardManifest.read(path).selection if Path(path).is_dir() else read_selection(path)


def _why(study: Study, figures: dict[str, Any]) -> dict[str, str]:
    """Figure of the counts that is null → why."""
    whys = {
        "specialisation": "there is one domain; give several",
        "coactivation": "a token goes to one expert",
        "coverage": "no resident experts were named",
        "vocabulary": "tokens were not recorded",
    }
    return {name: why for name, why in whys.items() if figures[name] is None}
