"""The small real texts that ship with moesaic; SOURCES.md beside this file says whose they are."""

from pathlib import Path

from moesaic.config.data import HELD_OUT_SHARE, SourceConfig, Split
from moesaic.data.readers import Place, read_documents
from moesaic.errors import DataError, suggest

_FOLDER = Path(__file__).parent
_ENDING = ".jsonl.xz"


def domains() -> tuple[str, ...]:
    """Names of the domains, to be read as ``corpus:NAME``."""
    return tuple(sorted(file.name.removesuffix(_ENDING) for file in _FOLDER.glob("*" + _ENDING)))


def file_of(domain: str) -> Path:
    """The file of one domain.

    Raises:
        DataError: if there is no such domain.
    """
    if domain not in domains():
        raise DataError(
            f"the corpus has no domain {domain!r}{suggest(domain, domains())}; it has "
            f"{', '.join(domains())}"
        )
    return _FOLDER / (domain + _ENDING)


def read(domain: str, split: Split = "train") -> list[str]:
    """The texts of one domain, split as by the default settings of a run.

    Raises:
        DataError: if there is no such domain.
    """
    config = SourceConfig(path=domain)
    documents = (document for document, _ in read_documents(file_of(domain), config, Place()))
    return [text.content for text in documents if text.is_in(split, HELD_OUT_SHARE)]
