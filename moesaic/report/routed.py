"""``routing.json`` as far as a report reads it; `moesaic.analyse.routing` says what each part is.

Lists called *by layer* have an entry for each of ``layers``.
"""

from typing import Any, Literal

from pydantic import Field

from moesaic.report.forms import Form

ByLayer = tuple[float | None, ...]
LayersByExperts = tuple[tuple[float | None, ...], ...]


class Compared(Form):
    """The other checkpoint on a domain, and by how much this one's loss is above it."""

    loss: float
    rise: float
    rise_stderr: float | None
    batches: int | None = None
    """Pairs that the error was taken over."""


class RoutedDomain(Form):
    """One domain."""

    source: str
    tokens: int
    loss: float | None
    stderr: float | None
    against: Compared | None = None


class Load(Form):
    """Where tokens go, by layer."""

    choices: LayersByExperts
    max_violation: ByLayer


class Specialisation(Form):
    """How far experts are for one domain, by layer."""

    most: float
    corrected: ByLayer
    halves: ByLayer
    experts: LayersByExperts


class Overlaps(Form):
    """How alike domains are in the experts they go to."""

    domains: tuple[str, ...]
    top: int
    by_chance: float
    mean: dict[str, LayersByExperts]
    halves: dict[str, dict[str, float] | None]


class Together(Form):
    """Which experts of a layer are chosen together."""

    strongest: float
    matrix: dict[str, Any]


class Coactivation(Form):
    """The same of all layers."""

    layers: tuple[Together, ...]


class DomainCoverage(Form):
    """What resident experts hold of a domain's routing, over layers."""

    mean: dict[str, float | None]


class ResidentCoverage(Form):
    """The same of every domain."""

    domains: dict[str, DomainCoverage]


class DomainDrift(Form):
    """What the other checkpoint decides otherwise, by layer."""

    first: ByLayer
    choices: ByLayer


class Drift(Form):
    """How differently the other checkpoint routes, and how far weights moved."""

    layers: tuple[int, ...]
    domains: dict[str, DomainDrift]
    moved: LayersByExperts | None = None


class Similar(Form):
    """Cosines of the weights of every two experts, by layer."""

    mean: ByLayer
    quantiles: tuple[tuple[float | None, ...], ...]


class Weights(Form):
    """How alike experts are."""

    experts: Similar
    router: Similar | None
    """None where every layer's experts are chosen by a hash."""


class Point(Form):
    """The loss with some experts switched off."""

    ratio: float
    chosen: int
    shared: bool
    rise: float
    rise_stderr: float | None


class Ablated(Form):
    """Curves of one checkpoint."""

    tokens: int
    shared: tuple[Point, ...] = ()
    disabled: tuple[Point, ...] = ()
    chosen: tuple[Point, ...] = ()
    redundancy: float | None = None


class Ablation(Form):
    """The same of both."""

    model: Ablated
    against: Ablated | None = None


class Routed(Form):
    """``routing.json``."""

    kind: Literal["routing"]
    model: dict[str, Any]
    against: dict[str, Any] | None = None
    layers: tuple[int, ...]
    domains: dict[str, RoutedDomain]
    loads: dict[str, Load]
    all_loads: Load
    specialisation: Specialisation | None = None
    overlap: Overlaps | None = None
    coactivation: Coactivation | None = None
    coverage: ResidentCoverage | None = None
    weights: Weights | None = None
    drift: Drift | None = None
    ablation: Ablation | None = None
    left_out: dict[str, str] = Field(default_factory=dict)
    versions: dict[str, Any] = Field(default_factory=dict)
    hardware: dict[str, Any] = Field(default_factory=dict)
