"""Charts of lines and points as SVG: no library, no numbers that are not in the result file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from math import ceil, floor, log10
from pathlib import Path

_COLOURS = (
    *("#4c566a", "#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#009e73", "#cc79a7"),
    *("#000000", "#9a6324", "#a9a9a9"),
)
"""Okabe and Ito's, told apart by the colour-blind too; then three for the longest legends."""
_WIDTH, _HEIGHT = 420, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 34, 40
_TICKS = 5
_ENTRY = 170
"""Width of an entry of the legend."""
_SLANTED = 3.2
"""Height of a letter of slanted text."""

Line = Sequence[tuple[float, float]]
"""Points from left to right."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart; lines of one name have one colour in every panel."""

    title: str
    x_label: str
    lines: Mapping[str, Line]
    from_zero: bool = False
    """Whether the vertical axis begins at 0."""
    as_points: bool = False
    """Whether points stand by themselves, without lines between them."""
    bars: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    """Vertical bars by name: where, the middle, and half the height."""
    places: Mapping[float, str] = field(default_factory=dict)
    """What stands below the axis in the place of numbers, by where."""


@dataclass(frozen=True, slots=True)
class _Axis:
    """Values along one side and where they lie in the picture."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round numbers, about five of them."""
        rough = (self.high - self.low) / _TICKS
        power = 10 ** floor(log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
        first, last = ceil(self.low / step), floor(self.high / step)
        return [round(place * step, 10) for place in range(first, last + 1)]


def write_charts(path: Path, title: str, panels: Sequence[Panel]) -> None:
    """Write panels side by side, with one legend below."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    colours = {name: _COLOURS[place % len(_COLOURS)] for place, name in enumerate(names)}
    longest = max((len(text) for panel in panels for text in panel.places.values()), default=0)
    width, below = _WIDTH * len(panels), _HEIGHT + round(_SLANTED * longest)
    columns = width // _ENTRY
    height = below + 26 + 18 * -(-len(names) // columns)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(width / 2, 15, title, "middle", "bold"),
    ]
    for place, panel in enumerate(panels):
        parts += [f'<g transform="translate({place * _WIDTH},0)">', *_panel(panel, colours), "</g>"]
    for place, name in enumerate(names):
        row, column = divmod(place, columns)
        x, y = _LEFT + _ENTRY * column, below + 22 + 18 * row
        parts.append(f'<path d="M{x} {y}h24" stroke="{colours[name]}" stroke-width="2.5"/>')
        parts.append(_text(x + 32, y + 4, name, "start"))
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


def _panel(panel: Panel, colours: dict[str, str]) -> list[str]:
    points = [point for line in panel.lines.values() for point in line]
    ends = [(x, y + way * half) for x, y, half in panel.bars.values() for way in (-1, 1)]
    xs, ys = [x for x, _ in points], [y for _, y in [*points, *ends]]
    margin = 0.04 * (max(ys) - min(ys)) or 1.0
    low = 0.0 if panel.from_zero else min(ys) - margin
    aside = 0.04 * (max(xs) - min(xs)) if panel.as_points else 0.0
    right = max(xs) + aside if max(xs) > min(xs) else min(xs) + 1
    across = _Axis(min(xs) - aside, right, _LEFT, _WIDTH - _RIGHT)
    up = _Axis(low, max(ys) + margin, _HEIGHT - _BOTTOM, _TOP)
    parts = [_text((across.start + across.end) / 2, _TOP - 5, panel.title, "middle")]
    for tick in up.ticks():
        y = up(tick)
        parts.append(f'<path d="M{across.start} {y:.1f}H{across.end}" stroke="#ddd"/>')
        parts.append(_text(across.start - 5, y + 4, f"{tick:g}", "end"))
    for x, text in panel.places.items():
        slanted = f'transform="translate({across(x):.1f},{up.start + 14}) rotate(-35)"'
        parts.append(f'<text {slanted} text-anchor="end">{escape(text)}</text>')
    for tick in () if panel.places else across.ticks():
        parts.append(_text(across(tick), up.start + 15, f"{tick:g}", "middle"))
    parts.append(_text((across.start + across.end) / 2, up.start + 31, panel.x_label, "middle"))
    for order, (name, line) in enumerate(panel.lines.items()):
        places = [(f"{across(x):.1f}", f"{up(y):.1f}") for x, y in line]
        if panel.as_points:
            parts += _rings(places, colours[name], 2.5 + 1.3 * order)
        else:
            parts.append(_polyline(places, colours[name]))
    for name, (x, y, half) in panel.bars.items():
        look = f'stroke="{colours[name]}" stroke-width="1.6"'
        parts.append(f'<path d="M{across(x):.1f} {up(y - half):.1f}V{up(y + half):.1f}" {look}/>')
        parts.append(f'<path d="M{across(x) - 5:.1f} {up(y):.1f}h10" {look}/>')
    return parts


def _polyline(places: Sequence[tuple[str, str]], colour: str) -> str:
    points = " ".join(",".join(place) for place in places)
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>'


def _rings(places: Sequence[tuple[str, str]], colour: str, radius: float) -> list[str]:
    """Each name has its own radius, so that points on one spot lie inside one another."""
    look = f'r="{radius:.1f}" fill="none" stroke="{colour}" stroke-width="1.3"'
    return [f'<circle cx="{x}" cy="{y}" {look}/>' for x, y in places]


def _text(x: float, y: float, text: str, anchor: str, weight: str = "normal") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}"'
    return f"<text {place}>{escape(text)}</text>"
