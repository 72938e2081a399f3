"""Which domain each expert is for, as coloured blocks in a terminal: layers by experts."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

_COLOURS = ("#4a89bb", "#e8890c", "#4caf6d", "#c75d9b", "#c9b037", "#8f6fd1", "#5fb3b3", "#b05a4a")
_GREY = "#20262e"
_STRENGTHS = (0.05, 0.15, 0.3)
"""Specialisation from which a block is a third, two thirds and all of its domain's colour."""
_MARGIN = 8


def domain_map(values: dict[str, Any], width: int) -> "Text":
    """A block for each expert: its favourite domain's colour, the brighter the more it is for it.

    Where the terminal is too narrow a block stands for several neighbours: the most specialised.
    """
    from rich.text import Text

    found, experts = values["specialisation"], values["model"]["experts"]
    per_block = -(-experts // max(1, width - _MARGIN))
    wide = 2 if 2 * experts <= width - _MARGIN else 1
    of_several = f", {per_block} experts per block" if per_block > 1 else ""
    heading = f"layer  the domain an expert is for: experts 0 to {experts - 1}{of_several}"
    lines = [Text(heading, "dim")]
    for place, layer in enumerate(values["layers"]):
        line = Text(f"{layer:>5} ")
        shares, best = found["experts"][place], found["favourite"][place]
        for start in range(0, experts, per_block):
            block = range(start, min(start + per_block, experts))
            expert = max(block, key=lambda i: shares[i] or 0.0)
            line.append(" " * wide, f"on {_colour(best[expert], shares[expert])}")
        lines.append(line)
    return Text("\n").join([*lines, _legend(found["domains"])])


def _legend(domains: list[str]) -> "Text":
    from rich.text import Text

    line = Text(" " * 6)
    for place, name in enumerate(domains):
        line.append("  ", f"on {_COLOURS[place % len(_COLOURS)]}").append(f" {name}  ")
    return line.append("grey: for none, or never chosen", "dim")


def _colour(domain: int | None, share: float | None) -> str:
    """The domain's colour, mixed with grey."""
    if domain is None or share is None:
        return _GREY
    part = sum(share >= strength for strength in _STRENGTHS) / len(_STRENGTHS)
    pairs = zip(_channels(_GREY), _channels(_COLOURS[domain % len(_COLOURS)]), strict=True)
    mixed = (round(grey + part * (colour - grey)) for grey, colour in pairs)
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def _channels(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[place : place + 2], 16) for place in (1, 3, 5))
