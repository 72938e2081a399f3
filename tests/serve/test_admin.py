"""Shards over HTTP: listed, asked for, and changed by those who may."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import openai
import pytest
from served import PATIENCE_S, client_of
from shards import EXPERTS, OTHERS, Home

from moesaic.config.model import ModelConfig
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import ConfigError
from moesaic.serve.run import Server

TURNS: Any = [{"role": "user", "content": "To be or not to be?"}]


@pytest.fixture(scope="module")
def home(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_config: Callable[..., ModelConfig],
    tokenizer: Tokenizer,
) -> Home:
    folder = tmp_path_factory.mktemp("home")
    config = tiny_config("v2", vocab_size=320, eos_token_id=None)
    home = Home.make(folder, config, tokenizer, "float32")
    home.shard("law", EXPERTS)
    home.shard("maths", OTHERS, seed=1)
    home.merged(home.folder / "law")
    return home


@contextmanager
def running(home: Home, folder: Path | None = None, **settings: Any) -> Iterator[Server]:
    """A real server of a folder."""
    server = Server(home.served(folder, **settings), "127.0.0.1", 0)
    thread = Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(PATIENCE_S)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def server(home: Home) -> Iterator[Server]:
    with running(
        home,
        shards={"law": home.folder / "law"},
        spare_experts=3,
        shards_folder=str(home.folder),
        api_keys=["user"],
        admin_keys=["boss"],
    ) as server:
        yield server


@contextmanager
def plain(server: Server, key: str) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {key}"}
    url = f"{server.address}/v1"
    with httpx.Client(base_url=url, headers=headers, timeout=PATIENCE_S) as client:
        yield client


def text_of(client: openai.OpenAI, model: str) -> str | None:
    answer = client.chat.completions.create(
        model=model, messages=TURNS, max_tokens=12, temperature=0
    )
    assert answer.model == model
    return answer.choices[0].message.content


def test_a_shard_is_listed_and_asked_for_by_name(server: Server, home: Home):
    with client_of(server, "user") as client:
        found = text_of(client, "base+law")
        assert text_of(client, "base") != found
        assert [model.id for model in client.models.list()] == ["base", "base+law"]
        assert client.models.retrieve("base+law").id == "base+law"
        with pytest.raises(openai.NotFoundError, match=r"ask for 'base' or 'base\+law'"):
            text_of(client, "base+maths")
    with running(home, home.folder / "merged-law") as merged, client_of(merged) as client:
        assert text_of(client, "merged-law") == found


def test_a_shard_is_loaded_and_unloaded_by_who_has_the_key(server: Server):
    with plain(server, "boss") as boss, client_of(server, "user") as client:
        loaded = boss.post("/shards", json={"name": "maths", "folder": "maths"})
        assert loaded.status_code == 200
        assert loaded.json()["id"] == "base+maths"
        assert loaded.json()["parent"] == "base"
        assert text_of(client, "base+maths") != text_of(client, "base")
        gone = boss.delete("/shards/maths")
        assert gone.json() == {"id": "base+maths", "object": "model", "deleted": True}
        with pytest.raises(openai.NotFoundError):
            text_of(client, "base+maths")
        assert boss.get("/models").status_code == 200


@pytest.mark.parametrize("key", ["user", "bos", "boss2", "böss"])
def test_another_key_changes_nothing(server: Server, key: str):
    headers = httpx.Headers({"Authorization": f"Bearer {key}"}, encoding="utf-8")
    with plain(server, "") as client:
        for answer in (
            client.post("/shards", json={"name": "a", "folder": "law"}, headers=headers),
            client.delete("/shards/law", headers=headers),
        ):
            assert answer.status_code == 401
            assert "the admin key is missing or wrong" in answer.json()["error"]["message"]
    assert server.served.names == ["base", "base+law"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"name": "a", "folder": "../elsewhere"}, "is not in the folder that shards are loaded"),
        ({"name": "a", "folder": "/etc"}, "is not in the folder that shards are loaded from; name"),
        ({"name": "a", "folder": "."}, "is not in the folder that shards are loaded from; name"),
        ({"name": "a", "folder": "\0"}, "is not in the folder that shards are loaded from; name"),
        ({"name": "a", "folder": "nothing"}, "manifest.json cannot be read"),
        ({"name": "a", "folder": "base"}, "manifest.json cannot be read"),
        ({"name": "a/b", "folder": "maths"}, "'a/b' cannot be the name of a shard"),
        ({"name": "law", "folder": "maths"}, "a shard 'law' is loaded; unload it"),
        ({"folder": "maths"}, "name is missing"),
    ],
)
def test_what_cannot_be_loaded_is_told(server: Server, asked: dict[str, str], message: str):
    with plain(server, "boss") as boss:
        answer = boss.post("/shards", json=asked)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
    assert server.served.names == ["base", "base+law"]


def test_nobody_changes_shards_where_nobody_may(home: Home):
    with running(home, shards={"law": home.folder / "law"}) as closed, plain(closed, "x") as client:
        answer = client.delete("/shards/law")
        assert answer.status_code == 403
        assert (
            "lets nobody load or unload shards; start it with" in answer.json()["error"]["message"]
        )


def test_who_may_load_shards_and_from_where_are_set_together(home: Home):
    with pytest.raises(ConfigError, match="shards_folder from where; set both, or none"):
        home.served(admin_keys=["boss"])
    with pytest.raises(ConfigError, match="shards_folder from where; set both, or none"):
        home.served(shards_folder="here")
    with pytest.raises(ConfigError, match="there is room for none; set spare_experts to the most"):
        home.served(admin_keys=["boss"], shards_folder="here")
