"""One table, three forms."""

import io

from rich.console import Console

from moesaic.planner.table import Column, Row, Table

TABLE = Table(
    "sizes",
    "Sizes",
    (
        Column("part", "", left=True),
        Column("size", "in\nbytes", "{:,}".format),
        Column("share", "share", "{:.0%}".format),
    ),
    (
        Row({"part": "weights", "size": 123_456_789, "share": 0.25}),
        Row({"part": "total", "size": 493_827_156}, strong=True),
    ),
    note="bytes are bytes",
)


def test_json_keeps_raw_values_and_says_what_is_absent():
    assert TABLE.to_json() == [
        {"part": "weights", "size": 123_456_789, "share": 0.25},
        {"part": "total", "size": 493_827_156, "share": None},
    ]


def test_markdown_aligns_numbers_right_and_marks_totals():
    assert TABLE.to_markdown() == (
        "### Sizes\n\n"
        "|  | in bytes | share |\n"
        "| --- | ---: | ---: |\n"
        "| weights | 123,456,789 | 25% |\n"
        "| **total** | **493,827,156** | – |\n"
        "\nbytes are bytes  \n"
    )


def test_the_terminal_shows_title_cells_and_note():
    out = io.StringIO()
    Console(file=out, width=60).print(TABLE.to_rich())
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert lines[0] == "Sizes"
    assert lines[1].split() == ["in"]
    assert lines[2].split() == ["bytes", "share"]
    assert lines[4].split() == ["weights", "123,456,789", "25%"]
    assert lines[5].split() == ["total", "493,827,156", "–"]
    assert lines[6] == "bytes are bytes"
