"""While a run is going the page is served to this machine, and shows what is new."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from socket import socket

import pytest

from moesaic.errors import RequestError
from moesaic.report.live import HOST, Server, Watched

Ask = Callable[..., tuple[int, str]]


@pytest.fixture
def folder(job: Path, tmp_path: Path) -> Path:
    """A run that has written half of its steps."""
    shutil.copytree(job / "one", tmp_path / "one")
    record = tmp_path / "one" / "record.jsonl"
    lines = record.read_text().splitlines(keepends=True)
    record.write_text("".join(lines[:5]))
    (tmp_path / "rest.jsonl").write_text("".join(lines[5:]))
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with Server(Watched([folder / "one"], "one", age_s=0.0), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def ask(server: Server) -> Ask:
    """``ask(path, method, host)``: status and body."""

    def call(path: str, method: str = "GET", host: str | None = None) -> tuple[int, str]:
        connection = HTTPConnection(HOST, server.server_port)
        connection.request(method, path, headers={"Host": host} if host else {})
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        return answer.status, body

    return call


def test_the_page_is_served_and_may_ask_its_own_server_only(ask: Ask):
    status, html = ask("/")
    assert status == 200
    assert "connect-src &#39;self&#39;;" in html


def test_what_a_run_writes_is_on_the_page_at_the_next_question(ask: Ask, folder: Path):
    before = json.loads(ask("/content.json")[1])
    with (folder / "one" / "record.jsonl").open("a") as file:
        file.write((folder / "rest.jsonl").read_text())
    after = json.loads(ask("/content.json")[1])

    def points(content: dict) -> int:
        [figure] = [one for one in content["figures"] if one["id"] == "loss-1"]
        return len(figure["data"]["series"][0]["x"])

    assert points(before) == 4
    assert points(after) == 8
    assert after["sections"][0]["id"] == "verdict"


def test_a_page_of_another_name_may_not_read_it(ask: Ask):
    assert ask("/content.json", host="evil.example:80")[0] == 403


@pytest.mark.parametrize("path", ["/etc/passwd", "/../record.jsonl", "/one/record.jsonl"])
def test_no_file_is_served(ask: Ask, path: str):
    assert ask(path)[0] == 404


def test_nothing_can_be_written(ask: Ask):
    assert {ask("/", method)[0] for method in ("POST", "PUT", "DELETE")} == {501}


def test_a_run_that_is_gone_is_said_and_the_server_stays(ask: Ask, folder: Path):
    shutil.move(folder / "one", folder / "elsewhere")
    status, told = ask("/content.json")
    assert status == 503
    assert "does not exist" in told
    shutil.move(folder / "elsewhere", folder / "one")
    assert ask("/content.json")[0] == 200


def test_a_port_that_is_taken_is_refused(folder: Path):
    with socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        with pytest.raises(RequestError, match=r"cannot be used .*; give another with --port"):
            Server(Watched([folder / "one"], "one"), taken.getsockname()[1])


def test_a_port_that_cannot_be_is_refused(folder: Path):
    with pytest.raises(RequestError, match=r"port 70000 cannot be used .*0-65535.*; give another"):
        Server(Watched([folder / "one"], "one"), 70000)
