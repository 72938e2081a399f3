"""How large the models of runs are, how each number is made, and memory planned and measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moesaic.config.lora import LoraConfig
from moesaic.config.model import ModelConfig
from moesaic.config.presets import find_model
from moesaic.errors import MoesaicError
from moesaic.planner.adapters import adapted_tensors, adapter_size
from moesaic.planner.inventory import TensorSpec, tensors
from moesaic.planner.memory import TrainMemory, train_memory
from moesaic.planner.params import params
from moesaic.planner.precision import PRECISIONS
from moesaic.planner.table import Column, Row, Table
from moesaic.report.blocks import Grid, Prose, Section, section
from moesaic.report.figures import Axis, bars
from moesaic.report.forms import Selected
from moesaic.report.runs import pace
from moesaic.report.sources import Run, Sources
from moesaic.report.words import listed, percent
from moesaic.units import gb

_ROUTED_HOLDS = ("cpu", "disk")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Parameters of what a run trains."""

    total: int
    activated: int
    backbone: int
    shared: int
    routed: int
    modules: int
    """Of the prediction modules, without what repeats the embedding and the head."""
    held: int
    trained: int
    experts: str
    """Routed experts of a layer that are trained, and how many there are."""

    @property
    def parked(self) -> int:
        """What is not on the device."""
        return self.total + self.modules - self.held


_ROWS = (
    ("backbone", "backbone", "embedding, attention, norms, dense layers, routers, head"),
    ("shared", "shared experts", "the experts that every token passes"),
    ("routed", "routed experts", "all experts of all layers that a router chooses among"),
    ("total", "total", "backbone + shared + routed"),
    ("modules", "prediction modules", "beside the total; without their copies of embedding, head"),
    (
        "activated",
        "activated",
        "per token: backbone + shared + the chosen experts, of an embedding table only one row",
    ),
    ("held", "held", "on the device while training: all that is computed with, experts not parked"),
    ("trained", "trained", "what gets a gradient: the selected experts, adapters, or everything"),
    ("parked", "parked", "total + prediction modules less held"),
)


def size_table(sources: Sources) -> Section | None:
    """Parameters of every run's model, with the way each number comes about."""
    sized: dict[Sizes, list[Run]] = {}
    missing: list[str] = []
    for run in sources.runs:
        found = sizes(run)
        if found is None:
            missing.append(run.name)
        else:
            sized.setdefault(found, []).append(run)
    table = _table(sized) if sized else None
    absent = f"The model that {listed(missing)} began with is not here, so its size is not shown."
    blocks = [Grid(table) if table else None, Prose(absent) if missing else None]
    return section("size", "Size", blocks)


def sizes(run: Run) -> Sizes | None:
    """Parameters of a run's model, counted over its tensors; None where the model is not known."""
    config = model_of(run)
    if config is None:
        return None
    plan = params(config, train_experts=None)
    specs = [spec for spec in tensors(config) if spec.copy_of is None]
    modules = sum(spec.size for spec in specs if (spec.layer or 0) >= config.num_hidden_layers)
    chosen = run.slice.selection if run.slice else None
    esft = run.config.get("esft")
    lora = LoraConfig.parse(esft["lora"]) if esft and esft["lora"] else None
    held = sum(spec.size for spec in specs if _is_held(spec, chosen, esft and esft["hold"]))
    trained = sum(spec.size for spec in specs if _is_trained(spec, chosen))
    if lora is not None and chosen is not None:
        trained = adapter_size(adapted_tensors(config, lora, chosen.experts), lora.rank)
        held += trained
    return Sizes(
        total=plan.total,
        activated=plan.activated,
        backbone=plan.backbone,
        shared=plan.shared,
        routed=plan.routed,
        modules=modules,
        held=held,
        trained=trained,
        experts=_experts(config, chosen),
    )


def model_of(run: Run) -> ModelConfig | None:
    """The configuration of a run's model; None where it began with a folder that is not here."""
    given = run.config["model"]
    try:
        if isinstance(given, dict):
            return ModelConfig.parse(given)
        near = (run.folder / "model", Path(given), run.folder.parent / given)
        found = next((place for place in near if (place / "config.json").exists()), given)
        return find_model(found)[1]
    except MoesaicError:
        return None


def _is_held(spec: TensorSpec, chosen: Selected | None, hold: str | None) -> bool:
    """Whether a tensor is on the device."""
    if spec.role != "routed" or spec.layer is None or chosen is None:
        return True
    if spec.expert in chosen.experts.get(spec.layer, ()):
        return True
    return spec.expert in chosen.frozen.get(spec.layer, ()) and hold not in _ROUTED_HOLDS


def _is_trained(spec: TensorSpec, chosen: Selected | None) -> bool:
    """Whether a tensor gets a gradient."""
    if chosen is None:
        return not spec.is_router_bias
    if spec.role == "routed":
        return spec.layer is not None and spec.expert in chosen.experts.get(spec.layer, ())
    if spec.role == "shared":
        return chosen.shared_experts
    return chosen.non_expert_modules or spec.role in chosen.modules


def _experts(config: ModelConfig, chosen: Selected | None) -> str:
    if not config.experts:
        return "no routed experts"
    if chosen is None:
        return f"all {config.experts}"
    each = sorted({len(ids) for ids in chosen.experts.values()})
    few = f"{each[0]}" if len(each) == 1 else f"{each[0]} to {each[-1]}"
    return f"{few} of {config.experts}"


def _table(sized: dict[Sizes, list[Run]]) -> Table:
    columns = [Column("what", "parameters", left=True)]
    names = {found: "\n".join(_few([run.name for run in runs])) for found, runs in sized.items()}
    columns += [Column(str(at), name) for at, name in enumerate(names.values())]
    columns.append(Column("how", "how it is computed", left=True))
    rows = [
        Row(
            {
                "what": name,
                "how": how,
                **{str(at): _count(getattr(found, key)) for at, found in enumerate(sized)},
            },
            strong=key in ("total", "held", "trained"),
        )
        for key, name, how in _ROWS
    ]
    experts = {str(at): found.experts for at, found in enumerate(sized)}
    rows.append(
        Row({"what": "experts trained", "how": "of each layer’s routed experts", **experts})
    )
    note = "Counted over the tensors of the published layout, without building the model."
    return Table("size", "", tuple(columns), tuple(rows), note)


def _few(names: list[str]) -> list[str]:
    return names if len(names) <= 3 else [*names[:2], f"and {len(names) - 2} more"]


def _count(value: int) -> str | None:
    return f"{value:,}" if value else None


def memory(sources: Sources) -> Section | None:
    """Peak bytes as planned beside the peak that was measured."""
    rows: list[tuple[str, str, float, str]] = []
    notes: list[str] = []
    for run in sources.runs:
        measured, planned = pace(run), planned_memory(run)
        if measured is None:
            continue
        if planned is not None:
            rows.append((run.name, "planned", planned.total / 1e9, gb(planned.total)))
        text, is_gpu = gb(measured.peak_bytes), bool(run.record.start["hardware"].get("gpu"))
        if planned is not None and is_gpu:
            text += f", {percent(measured.peak_bytes / planned.total, 0)} of planned"
        rows.append((run.name, "measured", measured.peak_bytes / 1e9, text))
        if not is_gpu:
            notes.append(run.name)
    about = Prose(
        f"Measured on a CPU ({listed(notes)}) is the peak of the whole process: Python, PyTorch "
        "(some 0.3 GB before any model), the data, and whatever the process did before, such as "
        "scoring experts; and memory that was freed is kept. Planned are weights, "
        "gradients, the optimiser’s moments and activations."
    )
    figure = bars(
        "memory",
        "Peak memory: planned and measured",
        "Planned by moesaic plan for the settings of the run, before it was started.",
        rows,
        Axis("GB (10⁹ bytes)", from_zero=True),
    )
    return section("memory", "Memory", [figure, about if notes else None])


def planned_memory(run: Run) -> TrainMemory | None:
    """What the planner says of a run; None where it has no figure for its settings."""
    config, esft, precision = model_of(run), run.config.get("esft"), run.config["precision"]
    if config is None or precision not in PRECISIONS or (esft and esft["lora"]):
        return None
    experts = frozen = None
    if run.slice is not None:
        counts = _uniform(list(run.slice.selection.experts.values()))
        kept = _uniform(list(run.slice.selection.frozen.values()))
        if counts is None or kept is None:
            return None
        experts, frozen = counts, kept
    optimizer, batch = run.config["optimizer"], run.config["batch"]
    rows = int(batch["rows"]["start"])
    at_once = batch["micro_rows"] or rows
    try:
        plan = params(
            config, experts, frozen or 0, hold=esft["hold"] if esft and frozen else "weights"
        )
        return train_memory(
            plan,
            PRECISIONS[precision].changed(optimizer["states"], optimizer["gradients"]),
            at_once,
            run.config["data"]["seq_len"],
            run.config["recompute"],
            max(1, rows // at_once),
            optimizer["offload"],
        )
    except MoesaicError:
        return None


def _uniform(layers: Sequence[Sequence[int]]) -> int | None:
    """How many there are in each, if it is the same everywhere; 0 of none."""
    sizes = {len(ids) for ids in layers} or {0}
    return sizes.pop() if len(sizes) == 1 else None
