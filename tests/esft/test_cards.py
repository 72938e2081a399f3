"""A merged checkpoint has a card of its own, with what went into it."""

from collections.abc import Callable
from pathlib import Path

from moesaic.checkpoint.digest import digest
from moesaic.checkpoint.markdown import read_card, with_front_matter
from moesaic.config.card import CardConfig
from moesaic.config.merge import MergeConfig
from moesaic.esft.merge import merge_shards
from moesaic.esft.undo import undo_merge

MakeBase = Callable[..., Path]
MakeShard = Callable[..., Path]
THEIRS = with_front_matter(
    {"license": "other", "license_name": "theirs", "tags": ["chat"]},
    "# Theirs\n\nThe best model.\n",
)


def test_a_merged_checkpoint_tells_of_every_shard_and_of_the_base(
    make_base: MakeBase, make_shard: MakeShard, tmp_path: Path
):
    base = make_base("v2")
    (base / "README.md").write_text(THEIRS)
    shards = [make_shard(f"shard{i}", base, step=0.5 + i) for i in range(2)]
    config = MergeConfig(card=CardConfig(base_model="someone/base"))
    merge = merge_shards(base, shards, tmp_path / "merged", config=config)
    front, text = read_card(tmp_path / "merged")
    assert front["license"] == "other"
    assert front["license_name"] == "theirs"
    assert front["base_model"] == "someone/base"
    assert front["tags"] == ["moesaic", "mixture-of-experts"]
    for shard in merge.shards:
        assert f"shard {shard.manifest.digest[:12]}" in text
        assert shard.manifest.work.fed in text
    assert "made by merging 2 shards into another model" in text
    assert merge.digest in text
    assert merge.base in text
    assert "The best model." not in text


def test_undoing_a_merge_gives_the_card_of_the_base_back(
    make_base: MakeBase, make_shard: MakeShard, tmp_path: Path
):
    base = make_base("v2")
    (base / "README.md").write_text(THEIRS)
    shard = make_shard("shard", base)
    merge_shards(base, [shard], tmp_path / "merged", config=MergeConfig(keep_undo=True))
    assert undo_merge(tmp_path / "merged", tmp_path / "back") == digest(base)
    assert (tmp_path / "back/README.md").read_text() == THEIRS


def test_the_licence_files_of_the_base_go_along(
    make_base: MakeBase, make_shard: MakeShard, tmp_path: Path
):
    base = make_base("v2")
    (base / "LICENSE").write_text("Do no harm.")
    merge_shards(base, [make_shard("shard", base)], tmp_path / "merged")
    assert (tmp_path / "merged/LICENSE").read_text() == "Do no harm."
