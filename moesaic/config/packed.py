"""Weights in packed integers as compressed-tensors publishes them, in the keys of config.json."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from moesaic.config.settings import Settings

_INERT: dict[str, tuple[Any, ...]] = {
    "targets": (),
    "format": ("pack-quantized",),
    "global_compression_ratio": (),
    "version": (),
    "observer": (),
    "observer_kwargs": (),
    "zp_dtype": (),
    "scale_dtype": (),
    "actorder": ("static", "weight"),
    "sparsity_config": ({},),
    "transform_config": ({},),
}
"""Keys that say how the codes were found or repeat a default; no values listed: any."""


class PackedIntegers(Settings):
    """The codes of a weight and what shares a scale."""

    num_bits: Literal[4, 8]
    """Of a code."""
    type: Literal["int"] = "int"
    symmetric: Literal[True] = True
    strategy: Literal["group"] = "group"
    group_size: PositiveInt
    """Neighbours of a row that share a scale."""
    dynamic: Literal[False] = False


class PackedModules(Settings):
    """Which modules are stored so, and how."""

    targets: Annotated[tuple[str, ...], Field(strict=False)] = ("Linear",)
    """Kinds of modules, for others: here a weight is packed where its codes are stored."""
    weights: PackedIntegers
    """The form of their weights."""


class PackedGroups(Settings):
    """Weights as signed integers in 32 bit words, one scale per group: ``pack-quantized``."""

    quant_method: Literal["compressed-tensors"] = "compressed-tensors"
    format: Literal["pack-quantized"] = "pack-quantized"
    quantization_status: Literal["compressed"] = "compressed"
    config_groups: dict[str, PackedModules]
    """Modules by how they are stored, under names that mean nothing."""
    ignore: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Modules that are not stored so, as names or as ``re:`` and a pattern."""

    @model_validator(mode="after")
    def _has_one_form(self) -> "PackedGroups":
        forms = {repr(modules.weights) for modules in self.config_groups.values()}
        if len(forms) != 1:
            raise ValueError(
                f"config_groups has {len(forms)} forms of weights, one is read; quantise all "
                "modules alike"
            )
        return self

    @property
    def weights(self) -> PackedIntegers:
        """The form of every packed weight."""
        return next(iter(self.config_groups.values())).weights


def packed_groups(bits: Literal[4, 8], group: int, ignore: tuple[str, ...]) -> PackedGroups:
    """The form of weights of some bits in groups of some size."""
    modules = PackedModules(weights=PackedIntegers(num_bits=bits, group_size=group))
    return PackedGroups(config_groups={"group_0": modules}, ignore=ignore)


def without_inert(table: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings without nulls, and without what leaves the stored form as it is."""
    return {
        key: without_inert(value) if isinstance(value, Mapping) else value
        for key, value in table.items()
        if value is not None and not (key in _INERT and (not _INERT[key] or value in _INERT[key]))
    }
