"""Which domain each expert is for, as coloured blocks."""

from typing import Any

from rich.text import Text

from moesaic.analyse.domain_map import domain_map


def _values(shares: list[float | None], best: list[int | None]) -> dict[str, Any]:
    special = {"domains": ["maths", "verse"], "experts": [shares], "favourite": [best]}
    return {"model": {"experts": len(shares)}, "layers": [4], "specialisation": special}


def _blocks(shown: Text) -> list[str]:
    """The colours of the layer's blocks."""
    start = shown.plain.index("\n") + 1 + 6
    stop = shown.plain.index("\n", start)
    return [str(span.style) for span in shown.spans if start <= span.start < stop]


def test_an_expert_has_the_colour_of_its_domain_the_brighter_the_more_it_is_for_it() -> None:
    found = domain_map(_values([0.4, 0.1, 0.0, None, 0.4], [0, 0, 0, None, 1]), width=80)
    most, less, none, unused, other = _blocks(found)
    assert most == "on #4a89bb"
    assert other == "on #e8890c"
    assert none == unused == "on #20262e"
    assert less not in (most, none)
    assert "maths" in found.plain
    assert "verse" in found.plain


def test_in_a_narrow_terminal_a_block_stands_for_several_experts() -> None:
    found = domain_map(_values([0.0, 0.4, 0.0, 0.0], [0, 1, 0, 0]), width=10)
    assert _blocks(found) == ["on #e8890c", "on #20262e"]
    assert "2 experts per block" in found.plain
