"""The page is one file that needs nothing else, and nothing that others wrote can act in it."""

import json
import re
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report.conftest import HOSTILE

from moesaic.errors import RequestError
from moesaic.report import page as pages
from moesaic.report.page import MOST_BYTES, make_page, render
from moesaic.report.read import read_sources
from moesaic.report.sources import Sources

MADE = datetime(2026, 1, 2, 3, 4)


class Tags(HTMLParser):
    """Which tags and attributes a page has, and what its scripts and data say."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.tags[-1][0] if self.tags else "", []).append(data)


@pytest.fixture(scope="module")
def html(sources: Sources) -> str:
    return render(make_page(sources, HOSTILE), MADE)


def test_sections_follow_each_other_from_the_verdict_to_the_recipe(sources: Sources):
    titles = [one.id for one in make_page(sources, "job").sections]
    assert titles == [
        *("verdict", "size", "cost", "memory", "loss", "scores", "retention", "wall-clock"),
        *("balance", "experts", "routing", "merge", "data", "samples", "recipe"),
    ]


def test_the_recommendation_follows_the_verdict_of_a_study(study: Path):
    titles = [one.id for one in make_page(read_sources([study]), "study").sections]
    assert titles == ["verdict", "recommendation", "recipe"]


def test_what_is_not_shown_is_said_at_the_end(job: Path, tmp_path: Path):
    (tmp_path / "x.json").write_text('{"kind": "weather"}')
    page = make_page(read_sources([job / "one", tmp_path / "x.json"]), "job")
    assert page.sections[-1].id == "not-shown"


def test_a_page_is_smaller_than_a_megabyte(html: str):
    assert len(html.encode()) < MOST_BYTES


def test_a_page_that_grows_too_large_leaves_out_its_largest_charts_and_says_so(
    sources: Sources, html: str, monkeypatch: pytest.MonkeyPatch
):
    most = len(html.encode()) - 2000
    monkeypatch.setattr(pages, "MOST_BYTES", most)
    smaller = render(make_page(sources, HOSTILE), MADE)
    assert len(smaller.encode()) <= most
    assert f"left out, or the page would be larger than {most:,} bytes" in smaller
    assert smaller.count("data-figure=") < html.count("data-figure=")


def test_a_page_that_is_too_large_without_charts_is_refused(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pages, "MOST_BYTES", 100_000)
    with pytest.raises(RequestError, match="more than the 100,000 bytes it may, even without"):
        render(make_page(sources, "job"), MADE)


def test_text_of_others_stays_text(html: str):
    found = Tags(html)
    assert [attributes for tag, attributes in found.tags if tag == "img"] == []
    assert sum(tag == "script" for tag, _ in found.tags) == 4
    assert "alert(1)" in html
    assert HOSTILE not in html
    handlers = [name for _, attributes in found.tags for name in attributes if name[:2] == "on"]
    assert handlers == []


def test_data_in_the_page_is_json_that_nothing_in_it_ends_early(html: str):
    data = re.search(
        r'<script type="application/json" id="report-data">(.*?)</script>', html, re.DOTALL
    )
    assert data is not None
    assert "<" not in data[1]
    figures = json.loads(data[1])["figures"]
    assert any(HOSTILE in json.dumps(figure, ensure_ascii=False) for figure in figures)


def test_the_page_may_run_its_own_scripts_only_and_ask_for_nothing(html: str):
    policy = next(
        attributes["content"]
        for tag, attributes in Tags(html).tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "connect-src 'none'" in policy
    assert "unsafe" not in policy
    assert policy.count("sha256-") == 4


def test_the_page_names_no_other_address(html: str):
    links = [
        value
        for _, attributes in Tags(html).tags
        for name, value in attributes.items()
        if name in ("src", "href") and value
    ]
    assert all(link.startswith("#") for link in links)
    namespaces = {"http://www.w3.org/" + name for name in ("1999/xhtml", "2000/svg", "1999/xlink")}
    namespaces |= {"http://www.w3.org/" + name for name in ("XML/1998/namespace", "2000/xmlns/")}
    assert set(re.findall(r"https?://[^\s\"'`<)]+", html)) <= namespaces


def test_every_figure_has_a_place_a_description_and_data(sources: Sources, html: str):
    page = make_page(sources, "job")
    figures = page.figures()
    places = [attributes for tag, attributes in Tags(html).tags if "data-figure" in attributes]
    assert [place["data-figure"] for place in places] == [figure["id"] for figure in figures]
    assert len({figure["id"] for figure in figures}) == len(figures)
    assert all(place["aria-label"] for place in places)
    assert all(figure["data"] for figure in figures)


def test_the_same_sources_make_the_same_page(sources: Sources, html: str):
    assert render(make_page(sources, HOSTILE), MADE) == html


def test_numbers_that_are_none_leave_a_gap(sources: Sources):
    text = json.dumps(make_page(sources, "job").to_json(), allow_nan=False)
    assert "NaN" not in text
