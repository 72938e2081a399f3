"""What the cards of merged checkpoints say of the work that went into them."""

from collections.abc import Sequence
from typing import Any

from moesaic.checkpoint.card import Made, Part
from moesaic.checkpoint.load import Reader
from moesaic.config.merge import Conditions
from moesaic.config.train import TrainConfig
from moesaic.errors import ConfigError
from moesaic.esft.manifest import Manifest


def made_of_shards(
    base: Reader, base_digest: str, manifests: Sequence[Manifest], config: Conditions
) -> Made:
    """A base with shards merged into it."""
    shards = "a shard" if len(manifests) == 1 else f"{len(manifests)} shards"
    return Made(
        how=f"made by merging {shards} into another model: its experts that slices were trained on",
        model=base.config,
        parts=tuple(_part(f"shard {one.digest[:12]}", one) for one in manifests),
        settings=_told(config),
        base=base.folder,
        base_digest=base_digest,
    )


def made_of_adapter(
    base: Reader, base_digest: str, manifest: Manifest | None, config: Conditions
) -> Made:
    """A base with an adapter merged into it; one from elsewhere says nothing of its making."""
    unknown = "" if manifest else ", of which no record says what it was trained on"
    return Made(
        how=f"made by merging a low-rank adapter into another model{unknown}",
        model=base.config,
        parts=(_part(f"adapter {manifest.digest[:12]}", manifest),) if manifest else (),
        settings=_told(config),
        base=base.folder,
        base_digest=base_digest,
    )


def _part(name: str, manifest: Manifest) -> Part:
    work, signature = manifest.work, manifest.signature
    return Part(
        name=name,
        data=work.data,
        tokens=work.tokens,
        steps=work.steps,
        fed=work.fed,
        settings=_differing(work.run),
        signed_by=signature and signature.key,
    )


def _differing(run: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run that are not the defaults; all, where another version wrote them."""
    try:
        return TrainConfig.parse(run).model_dump(mode="json", exclude_defaults=True)
    except ConfigError:
        return run


def _told(config: Conditions) -> dict[str, Any]:
    """How it was merged; files of keys are of no use elsewhere."""
    return config.model_dump(mode="json", exclude_defaults=True, exclude={"trusted", "card"})
