"""The final model of a run, in the published layout, with its tokenizer and its card."""

from functools import partial
from pathlib import Path

from moesaic.checkpoint.card import Made, Part, write_card
from moesaic.checkpoint.digest import digest
from moesaic.checkpoint.save import save
from moesaic.config.train import TrainConfig
from moesaic.runlog import Line, read_run
from moesaic.train.folder import RunFolder
from moesaic.train.setup import base_folder
from moesaic.train.state import TrainState


def export(config: TrainConfig, folder: RunFolder, state: TrainState) -> None:
    """Write the final model, unless that was done."""
    if folder.model.exists():
        return
    trained_in = "bfloat16" if config.precision == "bfloat16" else "float32"
    base, model = base_folder(config), state.model
    made = _made(config, folder, state, base)
    save(
        folder.model,
        model.config,
        model.state_dict(),
        config.checkpoint.export_dtype or trained_in,
        source=folder.tokenizer if base is None or config.tokenizer is not None else base,
        finish=partial(write_card, made=made, asked=config.card, name=folder.path.resolve().name),
    )


def last_evaluations(folder: RunFolder) -> tuple[Line, ...]:
    """The last held-out numbers of every domain."""
    found = read_run(folder.record).of("evaluation")
    return tuple(line for line in found if line["step"] == found[-1]["step"])


def _made(config: TrainConfig, folder: RunFolder, state: TrainState, base: Path | None) -> Made:
    part = Part(
        name="this run",
        data=tuple(source.path for source in config.data.sources),
        tokens=state.tokens,
        steps=state.step,
        fed=state.fed,
        settings=config.model_dump(mode="json", exclude_defaults=True),
    )
    return Made(
        how="trained from nothing" if base is None else "all of it trained on from another model",
        model=state.model.config,
        parts=(part,),
        base=base,
        base_digest=None if base is None else digest(base),
        held_out=last_evaluations(folder),
    )
