"""`DataConfig`: which documents a run reads, and how they become rows of tokens."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from moesaic.config.chat import TemplateName
from moesaic.config.settings import Settings

Split = Literal["train", "held_out", "all"]
RowForm = Literal["messages", "instruction", "question", "prompt", "text"]
Packing = Literal["concatenate", "best-fit", "none"]
LongDocuments = Literal["split", "truncate", "drop"]
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
    rows: RowForm | None = None
    """What the rows of JSONL and Parquet are, by the field that each begins with: `messages` of a
    conversation, an `instruction` with its output, a `question` with its answer, a `prompt` with
    its completion, or a plain `text`. None looks at each row's fields, in this order."""
    field: str = "text"
    """Field of a row with its plain text; another one than "text" means that rows are texts."""
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

    @model_validator(mode="after")
    def _rows_are_read_one_way(self) -> Self:
        if self.field != "text" and self.rows not in (None, "text"):
            raise ValueError(
                f"field={self.field!r} names the text of plain rows, but rows={self.rows!r}; "
                "remove one of them"
            )
        if self.rows is not None and (self.format == "text" or self.separator is not None):
            raise ValueError(
                f"rows={self.rows!r} has no meaning for text files, which have no fields; remove it"
            )
        return self


class DataConfig(Settings):
    """What a run reads. All random choices follow from `seed`: the same settings, the same rows."""

    sources: Annotated[tuple[SourceConfig, ...], Field(strict=False, min_length=1)]
    """Where documents come from."""
    seq_len: PositiveInt
    """Positions in a row, each of which predicts one token."""
    packing: Packing | None = None
    """How documents share rows. "concatenate" joins them and cuts at the end of every row, so
    nothing is padding; "best-fit" keeps documents whole and puts together those that fill a row
    best; "none" gives each a row of its own. None is "best-fit" where answers are learned, else
    "concatenate"."""
    long_documents: LongDocuments = "split"
    """What becomes of a document longer than a row. "split" goes on in further rows, where what
    stood before cannot be seen, and loses nothing that is learned; "truncate" keeps its first row;
    "drop" leaves it out. The loader's report counts what is left out."""
    loss_on: Literal["all", "answers"] = "all"
    """What is learned: every token, or only completions and the assistant's turns."""
    chat_template: TemplateName | None = None
    """How conversations are written; None follows the tokenizer's own template. In "deepseek-r1"
    only the last answer is learned, and those before it stand without their reasoning."""
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

    @property
    def packs_by(self) -> Packing:
        """How documents share rows, decided."""
        if self.packing is not None:
            return self.packing
        return "concatenate" if self.loss_on == "all" else "best-fit"
