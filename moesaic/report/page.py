"""One self-contained page of everything that was found: text, tables, charts and their data."""

import json
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from moesaic import __version__
from moesaic.errors import RequestError
from moesaic.report.blocks import Block, Claim, Figure, Prose, Section
from moesaic.report.comparison import recommendation
from moesaic.report.cost import throughput, wall_clock
from moesaic.report.data import data
from moesaic.report.experts import experts
from moesaic.report.losses import balance, loss, retention
from moesaic.report.merging import merging
from moesaic.report.recipe import not_shown, recipe
from moesaic.report.routing import routing
from moesaic.report.samples import samples
from moesaic.report.scores import scores
from moesaic.report.sizes import memory, size_table
from moesaic.report.sources import Sources
from moesaic.report.verdict import verdict
from moesaic.report.words import listed, plural

MOST_BYTES = 1_000_000
"""Of a page."""
_ASSETS = files("moesaic.report") / "assets"
_SCRIPTS = ("plot.min.js", "charts.js", "page.js")
_ORDER = (
    verdict,
    recommendation,
    size_table,
    throughput,
    memory,
    loss,
    scores,
    retention,
    wall_clock,
    balance,
    experts,
    routing,
    merging,
    data,
    samples,
    recipe,
    not_shown,
)
"""Sections as they follow each other, each shown where it has something to show."""


_STUDIES = "studies of variants"


@dataclass(frozen=True, slots=True)
class Page:
    """What a page says, before it is HTML."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]

    def to_json(self) -> dict[str, Any]:
        """What a page that is open needs to show this instead."""
        return {
            "subtitle": self.subtitle,
            "sections": [
                {"id": one.id, "title": one.title, "html": str(_rendered(one))}
                for one in self.sections
            ],
            "figures": self.figures(),
        }

    def told(self) -> list[str]:
        """The verdict, a sentence each."""
        blocks = (block for one in self.sections for block in one.blocks)
        return [block.text for block in blocks if isinstance(block, Claim)]

    def figures(self) -> list[dict[str, Any]]:
        """Every chart of the page."""
        return [figure.to_json() for one in self.sections for figure in one.figures]


def make_page(sources: Sources, title: str) -> Page:
    """The sections that there is something for."""
    sections = (make(sources) for make in _ORDER)
    if [*sources.shown] == [_STUDIES]:
        title = "Which variant of partial training to use"
    return Page(title, _subtitle(sources), tuple(one for one in sections if one is not None))


def render(page: Page, made: datetime, live_s: float | None = None) -> str:
    """The page as HTML that needs nothing else.

    Charts that make it too large are left out, the largest first; the page says which.

    Args:
        page: what it says.
        made: the time that stands on it.
        live_s: seconds between its questions to its server for news; None asks none.

    Raises:
        RequestError: if it is larger than a page may be without any chart.
    """
    html = _html(page, made, live_s)
    while len(html.encode()) > MOST_BYTES:
        page = _without_largest(page)
        html = _html(page, made, live_s)
    return html


def _without_largest(page: Page) -> Page:
    """The page with words in the place of its largest chart."""
    sizes = {figure["id"]: len(json.dumps(figure["data"])) for figure in page.figures()}
    if not sizes:
        raise RequestError(
            f"the page would have more than the {MOST_BYTES:,} bytes it may, even without charts; "
            "give fewer runs or results at once"
        )
    largest = max(sizes, key=lambda id: sizes[id])
    return replace(page, sections=tuple(_without(one, largest) for one in page.sections))


def _without(section: Section, id: str) -> Section:
    blocks = (
        Prose(f"{block.title}: left out, or the page would be larger than {MOST_BYTES:,} bytes.")
        if isinstance(block, Figure) and block.id == id
        else block
        for block in section.blocks
    )
    return replace(section, blocks=tuple(blocks))


def _html(page: Page, made: datetime, live_s: float | None) -> str:
    scripts = [_asset(name) for name in _SCRIPTS]
    style = _asset("page.css")
    return (
        _templates()
        .get_template("page.html")
        .render(
            page=page,
            sections=[(one, _rendered(one)) for one in page.sections],
            data=_embedded({"figures": page.figures(), "live": live_s}),
            scripts=[Markup(script) for script in scripts],  # our own files
            style=Markup(style),
            policy=_policy(scripts, style, live_s is not None),
            made=made.strftime("%Y-%m-%d %H:%M"),
            version=__version__,
        )
    )


def _subtitle(sources: Sources) -> str:
    singular = {
        "runs": "run",
        "scored experts": "scoring of experts",
        "evaluations": "evaluation",
        "merged checkpoints": "merged checkpoint",
        "routing analyses": "routing analysis",
        "studies of variants": "study of variants",
    }
    parts = [
        f"1 {singular[kind]}" if len(names) == 1 else f"{len(names)} {kind}"
        for kind, names in sources.shown.items()
    ]
    return listed(parts)


def _rendered(section: Section) -> Markup:
    template = _templates().from_string(
        '{% from "blocks.html" import contents %}{{ contents(section) }}'
    )
    return Markup(template.render(section=section))  # escaped by the template


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["kind"] = _kind
    return environment


def _kind(block: Block) -> str:
    return type(block).__name__


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _embedded(value: Any) -> Markup:
    """JSON that no text in it can end early, wherever it stands in HTML."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _policy(scripts: Sequence[str], style: str, live: bool) -> str:
    """What the page may do: run its own scripts, and nothing from elsewhere."""
    allowed = " ".join(_hash(script) for script in scripts)
    asked = "'self'" if live else "'none'"
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {allowed}",
            f"style-src {_hash(style)}",
            "img-src data:",
            f"connect-src {asked}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def title_of(names: Sequence[str]) -> str:
    """What a page about some folders is called."""
    shown = names if len(names) <= 3 else [*names[:2], plural(len(names) - 2, "other")]
    return listed(list(shown))
