"""`DataConfig`: which documents a run reads, and how they become rows of tokens."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from moesaic.config.settings import Settings

Split = Literal["train", "held_out", "all"]
HELD_OUT_SHARE = 0.05
"""Share of the documents kept from training unless a run says otherwise."""

Share = Annotated[float, Field(ge=0, le=1)]


class SourceConfig(Settings):
    """Documents of one kind, and their part in the mixture."""

    path: str
    """A file, a pattern like ``books/*.jsonl.xz``, or ``corpus:NAME`` for a domain that ships with
    moesaic. ``.gz`` and ``.xz`` are opened as they are."""
    weight: PositiveFloat = 1.0
    """Share of the tokens that come from here, relative to the other sources."""
    split: Split = "train"
    """Which documents: those to train on, those held out, or all. See `held_out_share`."""
    format: Literal["text", "jsonl", "parquet"] | None = None
    """How the files are written; None goes by their ending."""
    field: str = "text"
    """Field of a row with its text. Rows with `messages`, or with `prompt` and `completion`, are
    read as conversations and pairs."""
    separator: Annotated[str, Field(min_length=1)] | None = None
    """What stands between the documents of a text file; None makes each file one document."""

    @model_validator(mode="after")
    def _separator_is_for_text(self) -> Self:
        if self.separator is not None and self.format in ("jsonl", "parquet"):
            raise ValueError(
                f"separator={self.separator!r} has no meaning with format={self.format!r}, whose "
                "rows are the documents; remove one of them"
            )
        return self


class DataConfig(Settings):
    """What a run reads. All random choices follow from `seed`: the same settings, the same rows."""

    sources: Annotated[tuple[SourceConfig, ...], Field(strict=False, min_length=1)]
    """Where documents come from."""
    seq_len: PositiveInt
    """Positions in a row, each of which predicts one token."""
    packing: bool = True
    """Whether a row holds as many documents as fit. If not, each document begins a row, and the
    rest of the row is padding."""
    loss_on: Literal["all", "answers"] = "all"
    """What is learned: every token, or only completions and the assistant's turns."""
    chat_template: Literal["deepseek-v2", "deepseek-v3"] | None = None
    """How conversations are written; None follows the tokenizer's own template."""
    fim_rate: Share = 0.0
    """Share of plain texts turned into prefix, suffix, middle; DeepSeek-V3 used 0.1."""
    epochs: PositiveInt | None = None
    """Passes over each source; None goes on for ever."""
    shuffle_window: PositiveInt = 10_000
    """Documents of a source held in memory and shuffled together; 1 keeps the files' order."""
    held_out_share: Annotated[float, Field(ge=0, lt=1)] = HELD_OUT_SHARE
    """Share of the documents kept from training. A document's hash decides, so that copies stay on
    one side."""
    seed: NonNegativeInt = 0
    """Decides the order of files and documents and where texts are cut for filling in."""

    @model_validator(mode="after")
    def _something_is_held_out(self) -> Self:
        for source in self.sources:
            if source.split == "held_out" and self.held_out_share == 0:
                raise ValueError(
                    f"source {source.path!r} reads the held-out documents, but held_out_share=0 "
                    "holds none out; raise held_out_share"
                )
        return self
