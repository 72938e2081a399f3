"""Model cards: the ``README.md`` of a checkpoint, as hubs read it.

Front matter says what machines ask for, the text what a person should know before using the model:
what it is, what it was made from and on what, how to make it again, how well it does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic import __version__
from moesaic.checkpoint.markdown import (
    README,
    fenced,
    plain,
    quoted,
    read_card,
    table,
    with_front_matter,
)
from moesaic.config.card import CardConfig
from moesaic.config.model import ModelConfig
from moesaic.config.toml import write_toml
from moesaic.errors import CheckpointError
from moesaic.planner.params import params
from moesaic.units import count

LICENSE = "license", "license_name", "license_link"
_TAGS = "moesaic", "mixture-of-experts"
_FAMILIES = {
    "deepseek": "DeepSeekMoE",
    "deepseek_v2": "DeepSeek-V2",
    "deepseek_v3": "DeepSeek-V3",
}
_MOST_RECIPES = 4
"""Run files that are quoted; of a merge of more shards none is."""
_UNSAID = "folder", "device", "logging", "checkpoint", "card"
"""Settings of a run that make no difference to the model."""
_USE = """\
## Use

```console
$ moesaic generate path/to/this/folder "Once upon a time"
```

```python
import moesaic

model = moesaic.load_model("path/to/this/folder")
```"""


@dataclass(frozen=True, slots=True)
class Part:
    """What a run contributed to a checkpoint."""

    name: str
    """What it is called in the table of data."""
    data: tuple[str, ...]
    """Names of what was read."""
    tokens: int
    steps: int
    fed: str
    """Digest of every row that was fed, in order."""
    settings: Mapping[str, Any]
    """Of the run."""
    signed_by: str | None = None
    """The public key that vouches for it."""


@dataclass(frozen=True, slots=True)
class Made:
    """How a checkpoint came to be."""

    how: str
    """Goes on after "A language model …"."""
    model: ModelConfig
    parts: tuple[Part, ...] = ()
    settings: Mapping[str, Any] | None = None
    """Of what put the parts together; None where one run made it all."""
    base: Path | None = None
    """The checkpoint it was made from."""
    base_digest: str | None = None
    held_out: Sequence[Mapping[str, Any]] = ()
    """Domain, loss, perplexity and bits per byte, measured when it was made."""


def write_card(folder: Path, made: Made, asked: CardConfig, name: str, digest: str) -> None:
    """Write ``README.md`` into a checkpoint that is being made.

    Args:
        folder: of the checkpoint.
        made: how it came to be.
        asked: what to say besides.
        name: the heading, unless ``asked`` has one.
        digest: of the checkpoint.
    """
    front, text = fresh_card(made, asked, name, digest)
    (folder / README).write_text(with_front_matter(front, text), encoding="utf-8")


def fresh_card(made: Made, asked: CardConfig, name: str, digest: str) -> tuple[dict[str, Any], str]:
    """Front matter and text; see `write_card`."""
    front = {
        **_base_licence(made, asked),
        **asked.front_matter(),
        "pipeline_tag": "text-generation",
        "tags": list(_TAGS),
    }
    parts = [
        f"# {plain(asked.title or name)}",
        _what(made),
        _facts(made, asked, front, digest),
        _data(made),
        _recipe(made),
        _held_out(made),
        _USE,
    ]
    return front, "\n\n".join(part for part in parts if part) + "\n"


def _base_licence(made: Made, asked: CardConfig) -> dict[str, Any]:
    """The licence fields of the base's card, unless the settings name a licence."""
    if asked.license is not None or made.base is None:
        return {}
    try:
        front, _ = read_card(made.base)
    except CheckpointError:  # a card that cannot be read names nothing, and this one says so
        return {}
    return {key: front[key] for key in LICENSE if _is_licence(front.get(key))}


def _is_licence(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return bool(texts) and all(isinstance(text, str) and 0 < len(text) <= 200 for text in texts)


def _what(made: Made) -> str:
    found, experts = params(made.model, None), made.model.experts
    chosen = f", {experts} routed experts per layer" if experts else ""
    return (
        f"A language model of {count(found.total)} parameters, {count(found.activated)} of them "
        f"activated per token{chosen}, {made.how}. It is stored in the layout of the published "
        f"{_FAMILIES[made.model.model_type]} checkpoints. Written by moesaic {__version__}."
    )


def _facts(made: Made, asked: CardConfig, front: Mapping[str, Any], digest: str) -> str:
    """What it is, what it comes from, under which licence."""
    lines = [f"- Digest of the weights: {quoted(digest)}"]
    if made.base_digest is not None:
        lines.append(f"- Digest of the base: {quoted(made.base_digest)}")
    if asked.base_model is not None:
        lines.append(f"- Base: {quoted(asked.base_model)}")
    named = [quoted(str(front[key])) for key in LICENSE if key in front]
    by = "" if asked.license is not None else ", as on the card of the base"
    lines.append(f"- Licence: {', '.join(named)}{by}" if named else "- No licence is named.")
    return "\n".join(lines)


def _data(made: Made) -> str:
    """What every part was trained on."""
    rows = [
        (
            quoted(part.name),
            ", ".join(map(quoted, part.data)),
            count(part.tokens),
            str(part.steps),
            quoted(part.fed),
            *((quoted(part.signed_by[:16]) if part.signed_by else "",) if _signed(made) else ()),
        )
        for part in made.parts
    ]
    head = ["trained by", "on", "tokens", "steps", "digest of the rows, in order"]
    return f"## Data\n\n{table([*head, *['signed with'] * _signed(made)], rows)}" if rows else ""


def _signed(made: Made) -> bool:
    return any(part.signed_by for part in made.parts)


def _recipe(made: Made) -> str:
    """The settings of every run, and of what put their work together."""
    blocks: list[str] = []
    if made.settings is not None:
        toml = write_toml({k: v for k, v in made.settings.items() if k not in _UNSAID})
        blocks.append(f"Put together with\n\n{fenced(toml, 'toml')}" if toml.strip() else "")
    different = {write_toml(_told(part.settings)): part.name for part in made.parts}
    if len(different) <= _MOST_RECIPES:
        blocks += [f"{quoted(name)}\n\n{fenced(toml, 'toml')}" for toml, name in different.items()]
    else:
        blocks.append(f"The {len(different)} run files are in the manifests of the shards.")
    return "\n\n".join(["## Recipe", *filter(None, blocks)]) if any(blocks) else ""


def _told(settings: Mapping[str, Any]) -> dict[str, Any]:
    told = {key: value for key, value in settings.items() if key not in _UNSAID}
    if isinstance(told.get("esft"), dict):
        told["esft"] = {key: part for key, part in told["esft"].items() if key != "sign_with"}
    return told


def _held_out(made: Made) -> str:
    """What was measured when it was made."""
    rows = [
        (
            quoted(line["domain"]),
            f"{line['loss']:.4f}",
            f"{line['perplexity']:.2f}",
            f"{line['bits_per_byte']:.4f}",
        )
        for line in made.held_out
    ]
    head = ("held-out text", "loss, nats per token", "perplexity", "bits per byte")
    return f"## Held-out loss\n\n{table(head, rows)}" if rows else ""
