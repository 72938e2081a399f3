"""Opened in a browser the page draws every chart, without a complaint and without a network."""

import shutil
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from report.browser import Tab, browser, found

from moesaic.report.live import Server, Watched
from moesaic.report.page import make_page, render
from moesaic.report.read import read_sources

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(found() is None, reason="no Chromium or Chrome on this machine"),
]
MARKS = """[...document.querySelectorAll('.drawing')].map((one) => [one.dataset.figure,
  one.querySelectorAll('svg path, svg rect, svg circle').length])"""
STEPS = "document.querySelector('#cost tbody').rows[0].cells[3].textContent * 1"
UNTIL_MORE = f"""new Promise((done) => {{
  const begin = {STEPS};
  const look = () => ({STEPS} > begin ? done({STEPS}) : setTimeout(look, 50));
  look();
}})"""
"""Asks until there are more steps than at first."""
WIDTHS = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
INK = "getComputedStyle(document.body).color + getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def page(job: Path, study: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Everything there is to show, on one page."""
    file = tmp_path_factory.mktemp("page") / "report.html"
    html = render(make_page(read_sources([job, study]), "everything"), datetime(2026, 1, 2))
    file.write_text(html, encoding="utf-8")
    return file.as_uri()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


@pytest.fixture
def tab(shared: Tab) -> Tab:
    """A tab that has complained of nothing yet, as wide as a desk's screen."""
    shared.problems.clear()
    shared.requests.clear()
    shared.look(1200)
    return shared


@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_every_chart_has_marks_and_nothing_complains(tab: Tab, page: str, width: int, dark: bool):
    tab.look(width, dark=dark)
    tab.open(page)
    marks = tab.ask(MARKS)
    assert len(marks) > 25
    assert [name for name, count in marks if not count] == []
    assert tab.problems == []


def test_nothing_is_fetched(tab: Tab, page: str):
    tab.open(page)
    assert tab.requests == [page]


def test_nothing_is_wider_than_a_phone(tab: Tab, page: str):
    tab.look(390)
    tab.open(page)
    wide, screen = tab.ask(WIDTHS)
    assert wide == screen


def test_dark_follows_the_system_and_the_button_overrules_it(tab: Tab, page: str):
    tab.open(page)
    light = tab.ask(INK)
    tab.look(1200, dark=True)
    dark = tab.ask(INK)
    assert light != dark
    tab.ask("document.getElementById('theme').click()")
    assert tab.ask(INK) == light
    tab.ask("localStorage.clear()")


def test_no_script_of_others_runs(tab: Tab, page: str):
    tab.open(page)
    assert tab.ask("document.querySelectorAll('img').length") == 0
    assert tab.ask("document.scripts.length") == 4


def test_figures_are_saved_as_csv(tab: Tab, page: str):
    tab.open(page)
    table = tab.ask("Charts.csv({data: {columns: {a: ['=1+1', 'b, \\\"c\\\"'], n: [1, null]}}})")
    assert table == 'a,n\n\'=1+1,1\n"b, ""c""",\n'
    saves = (
        "document.querySelectorAll('.csv').length === document.querySelectorAll('.chart').length"
    )
    assert tab.ask(saves)


def test_news_replaces_what_changed_and_leaves_open_what_was_opened(tab: Tab, page: str):
    tab.open(page)
    news = """(() => {
      document.querySelectorAll('#recipe details')[1].open = true;
      const section = (id) => ({id, title: id, html: document.getElementById(id).innerHTML
        .replace(/<h2.*?<\\/h2>/s, '')});
      Page.update({subtitle: 'news', sections: ['verdict', 'recipe'].map(section), figures: []});
      return [document.getElementById('subtitle').textContent,
        document.querySelectorAll('main > section').length,
        document.querySelectorAll('#recipe details')[1].open];
    })()"""
    assert tab.ask(news) == ["news", 2, True]
    assert tab.problems == []


def test_a_live_page_shows_what_a_run_has_written_since(tab: Tab, job: Path, tmp_path: Path):
    shutil.copytree(job / "one", tmp_path / "one")
    record = tmp_path / "one" / "record.jsonl"
    lines = record.read_text().splitlines(keepends=True)
    record.write_text("".join(lines[:4]))
    with Server(Watched([tmp_path / "one"], "one", age_s=0.0), 0, every_s=0.1) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tab.open(server.address)
        before = tab.ask(STEPS)
        record.write_text("".join(lines))
        assert tab.ask(UNTIL_MORE) > before
        assert " · live, " in tab.ask("document.getElementById('state').textContent")
        assert tab.problems == []
        tab.open("about:blank")
        server.shutdown()


def test_it_prints(tab: Tab, page: str, tmp_path: Path):
    tab.look(1200, dark=True)
    tab.open(page)
    tab.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    assert tab.problems == []
