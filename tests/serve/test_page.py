"""The chat page talks with the server that it came from, in a real browser, and with nobody
else."""

import re
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from time import monotonic, sleep
from typing import Any

import pytest
from jobs import wait_for
from report.browser import Tab, browser, found
from served import N_BLOCKS, NAME, served

from moesaic.data.tokenizer import Tokenizer
from moesaic.model.transformer import Transformer
from moesaic.serve.page import page_headers, page_html
from moesaic.serve.run import Server

CODES = {"Enter": 13, "Escape": 27}
SAID = "document.querySelector('.turn:last-child .said').textContent"
NOTES = "[...document.querySelectorAll('.note')].map((one) => one.textContent)"
PROBLEM = "document.getElementById('problem').innerText"
READY = "document.getElementById('model')?.disabled === false"
INK = "getComputedStyle(document.body).color + getComputedStyle(document.body).backgroundColor"
HOSTILE = r"""# <img src=x onerror=alert(1)>

<script>alert(2)</script> **<b onclick=alert(3)>** `<i>` [a](javascript:alert(4))
[b](https://x.y/"onmouseover="alert(5)) https://x.y/<svg/onload=alert(6)>

| <u> | b |
| --- | --: |
| <s> | 2 |

- one <a href=z>
  - two

```html"><script>
<script>alert(7)</script>
"""


def test_the_page_is_small_and_names_no_other_server():
    html = page_html()
    assert len(html.encode()) < 60_000
    assert not re.findall(r"(?:src|href)=[\"']?(?!data:)[\w/]", html)
    assert "{{" not in html
    assert "innerHTML" not in html


def test_only_the_pages_own_script_and_style_count():
    policy = page_headers()["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for name in ("script", "style"):
        [text] = re.findall(rf"<{name}>(.*?)</{name}>", page_html(), re.DOTALL)
        digest = b64encode(sha256(text.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}';" in policy


in_a_browser = pytest.mark.skipif(found() is None, reason="no Chromium or Chrome on this machine")


def wait(tab: Tab, expression: str) -> Any:
    """The value of an expression, as soon as there is one."""
    end = monotonic() + 60
    while not (value := tab.ask(expression)):
        assert monotonic() < end, f"{expression}: {tab.ask('document.body.innerText')}"
        sleep(0.02)
    return value


def press(tab: Tab, key: str, **modifiers: int) -> None:
    text = "\r" if key == "Enter" else ""
    for kind in ("keyDown", "keyUp"):
        tab.call(
            "Input.dispatchKeyEvent",
            type=kind,
            key=key,
            code=key,
            windowsVirtualKeyCode=CODES[key],
            text=text if kind == "keyDown" else "",
            **modifiers,
        )


def write(tab: Tab, text: str, field: str = "message") -> None:
    tab.ask(f"document.getElementById('{field}').select()")
    tab.call("Input.insertText", text=text)


def click(tab: Tab, label: str) -> None:
    buttons = "[...document.querySelectorAll('button')]"
    tab.ask(f"{buttons}.find((one) => one.textContent === '{label}').click()")


def set_to(tab: Tab, field: str, value: object) -> None:
    tab.ask(f"document.getElementById('{field}').value = {value!r}")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def visit(tab: Tab, server: Server) -> None:
    tab.open(f"{server.address}/")
    wait(tab, f"location.href === '{server.address}/' && document.readyState === 'complete'")


@contextmanager
def opened(tab: Tab, server: Server) -> Iterator[Tab]:
    """The page, as wide as a desk's screen, which at the end has complained of nothing."""
    tab.look(1200)
    visit(tab, server)
    tab.ask("sessionStorage.clear()")
    tab.problems.clear()
    tab.requests.clear()
    visit(tab, server)
    yield tab
    assert tab.problems == []
    assert all(url.startswith((server.address, "data:")) for url in tab.requests)
    tab.open("about:blank")


@pytest.fixture
def tab(shared: Tab, server: Server) -> Iterator[Tab]:
    with opened(shared, server) as page:
        wait(page, READY)
        yield page


@pytest.mark.slow
@in_a_browser
class TestInABrowser:
    def test_an_answer_appears_as_it_is_written(self, tab: Tab):
        assert tab.ask("document.getElementById('model').value") == NAME
        set_to(tab, "max-tokens", 200)
        write(tab, "To be")
        press(tab, "Enter", modifiers=8)
        tab.call("Input.insertText", text="or not")
        press(tab, "Enter")
        first = wait(tab, SAID)
        assert "Stop" in tab.ask("document.getElementById('send').textContent")
        [note] = wait(tab, f"({NOTES}).length && {NOTES}")
        assert re.match(r"200 tokens · [\d.]+ tokens/s · first after [\d.]+ s · cut off", note)
        assert len(tab.ask(SAID)) > len(first)
        asked = tab.ask("document.querySelector('.user .said').textContent")
        assert asked == "To be\nor not"

    def test_escape_stops_an_answer_and_what_was_said_stays(self, tab: Tab, server: Server):
        set_to(tab, "max-tokens", 450)
        write(tab, "Go on")
        press(tab, "Enter")
        wait(tab, f"{SAID}.length > 20")
        press(tab, "Escape")
        [note] = wait(tab, f"({NOTES}).length && {NOTES}")
        assert note.endswith(" · stopped")
        wait_for(lambda: not server.served.engine.stats().running)
        assert server.served.engine.stats().blocks_free == N_BLOCKS
        assert tab.ask("document.querySelectorAll('.turn').length") == 2

    def test_the_conversation_is_sent_with_the_system_prompt(self, tab: Tab):
        tab.ask("""{
          const plain = window.fetch;
          window.sent = [];
          window.fetch = (path, options) => {
            if (options.body) window.sent.push(JSON.parse(options.body));
            return plain(path, options);
          };
        }""")
        set_to(tab, "system", "Be brief.")
        set_to(tab, "temperature", 0)
        set_to(tab, "max-tokens", 3)
        for number, text in enumerate(["one", "two"], 1):
            write(tab, text)
            press(tab, "Enter")
            wait(tab, f"({NOTES}).length === {number}")
        [first, second] = tab.ask("window.sent")
        assert first["messages"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "one"},
        ]
        assert [turn["role"] for turn in second["messages"][2:]] == ["assistant", "user"]
        assert (second["temperature"], second["max_tokens"]) == (0, 3)

    def test_a_refused_request_is_told_in_words_and_gives_its_message_back(self, tab: Tab):
        set_to(tab, "max-tokens", 5000)
        write(tab, "Too much")
        press(tab, "Enter")
        wait(tab, PROBLEM)
        assert "together more than max_position_embeddings=512; lower" in tab.ask(PROBLEM)
        assert tab.ask("document.getElementById('message').value") == "Too much"
        assert tab.ask("document.querySelectorAll('.turn').length") == 0
        assert [each for each in tab.problems if "status of 400" not in each] == []
        tab.problems.clear()  # the browser tells every refused request

    def test_another_answer_an_edit_and_a_new_chat(self, tab: Tab):
        set_to(tab, "max-tokens", 3)
        write(tab, "one")
        press(tab, "Enter")
        wait(tab, f"({NOTES}).length === 1")
        click(tab, "Again")
        wait(tab, f"document.querySelector('.writing') || ({NOTES}).length === 1")
        wait(tab, f"({NOTES}).length === 1")
        assert tab.ask("document.querySelectorAll('.turn').length") == 2
        click(tab, "Edit")
        assert tab.ask("document.getElementById('message').value") == "one"
        assert tab.ask("document.querySelectorAll('.turn').length") == 0
        tab.ask("document.getElementById('fresh').click()")
        assert tab.ask("getComputedStyle(document.getElementById('welcome')).display") == "block"

    def test_a_conversation_is_there_again_when_the_page_is_loaded_anew(self, tab: Tab):
        set_to(tab, "max-tokens", 5)
        write(tab, "one")
        press(tab, "Enter")
        wait(tab, f"({NOTES}).length === 1")
        said = tab.ask(SAID)
        tab.open(tab.ask("location.href"))
        wait(tab, READY)
        assert tab.ask(SAID) == said
        assert tab.ask("localStorage.length") == 0

    def test_text_of_a_model_is_only_ever_text(self, tab: Tab):
        place = "document.querySelector('#log')"
        tab.ask(f"Markdown.show({place}, {HOSTILE!r})")
        for name in ("script", "img", "b", "i", "u", "s", "svg"):
            assert tab.ask(f"{place}.querySelectorAll('{name}').length") == 0, name
        links = tab.ask(f"[...{place}.querySelectorAll('a')].map((one) => one.href)")
        assert links == ["https://x.y/", "https://x.y/"]
        assert "<script>alert(2)</script>" in tab.ask(f"{place}.textContent")
        names = tab.ask(f"[...{place}.children].map((one) => one.tagName).join(' ')")
        assert names == "H3 P DIV UL DIV"
        attributes = tab.ask(
            f"[...{place}.querySelectorAll('*')].flatMap((one) => one.getAttributeNames())"
        )
        assert not [name for name in attributes if name.startswith("on")]

    def test_a_growing_text_leaves_finished_parts_alone(self, tab: Tab):
        parts = "one\n\n```\ntwo\n```\n\n- three"
        same = tab.ask(f"""(() => {{
          const place = document.querySelector('#log');
          Markdown.show(place, {parts!r});
          const before = [...place.children];
          Markdown.show(place, {parts!r} + " four");
          return [...place.children].map((one, i) => one === before[i]);
        }})()""")
        assert same == [True, True, False]

    @pytest.mark.parametrize("dark", [False, True])
    def test_nothing_is_wider_than_a_phone_and_dark_follows_the_system(self, tab: Tab, dark: bool):
        tab.look(390, dark=dark)
        tab.ask("document.getElementById('show-settings').click()")
        tab.ask(f"Markdown.show(document.querySelector('#log'), 'w'.repeat(999) + {HOSTILE!r})")
        root = "document.documentElement"
        assert tab.ask(f"{root}.scrollWidth === {root}.clientWidth")
        assert tab.ask("document.getElementById('scroll').scrollWidth <= 390")
        light = "rgb(26, 29, 33)rgb(255, 255, 255)"
        assert (tab.ask(INK) == light) is not dark

    def test_every_control_has_a_name(self, tab: Tab):
        assert not tab.ask("""[...document.querySelectorAll('button, select, input, textarea')]
          .filter((one) => !(one.textContent.trim() || one.labels.length)).length""")

    def test_a_key_is_asked_for_and_kept_in_the_tab(
        self, shared: Tab, model: Transformer, tokenizer: Tokenizer
    ):
        with (
            served(model, tokenizer, api_keys=["first"]) as guarded,
            opened(shared, guarded) as page,
        ):
            wait(page, PROBLEM)
            assert page.ask(PROBLEM) == "The server asks for an API key."
            assert page.ask("document.activeElement.id") == "key"
            page.call("Input.insertText", text="first")
            press(page, "Enter")
            wait(page, READY)
            assert not page.ask(PROBLEM)
            assert [each for each in page.problems if "status of 401" not in each] == []
            page.problems.clear()
            visit(page, guarded)
            wait(page, READY)
            assert page.ask("localStorage.length") == 0

    def test_a_server_that_has_gone_is_told(
        self, shared: Tab, model: Transformer, tokenizer: Tokenizer
    ):
        with served(model, tokenizer) as going:
            visit(shared, going)
            wait(shared, READY)
        write(shared, "Are you there?")
        press(shared, "Enter")
        wait(shared, PROBLEM)
        assert "cannot be reached. Is it still running?" in shared.ask(PROBLEM)
        shared.ask("sessionStorage.clear()")
