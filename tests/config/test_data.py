import pytest

from moesaic.config.data import DataConfig, SourceConfig
from moesaic.errors import ConfigError

SOURCE = {"path": "corpus:english"}


def test_lists_of_a_run_file_are_read():
    config = DataConfig.parse({"sources": [SOURCE, {**SOURCE, "weight": 2}], "seq_len": 8})
    assert [source.weight for source in config.sources] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sources": []}, r"sources=\[\] is not allowed"),
        ({"seq_len": 0}, "seq_len=0 is not allowed; it should be greater than 0"),
        ({"fim_rate": 1.5}, "fim_rate=1.5 is not allowed; it should be less than or equal to 1"),
        ({"held_out_share": 1.0}, "held_out_share=1.0 is not allowed; it should be less than 1"),
        ({"loss_on": "answer"}, "loss_on='answer' is not one of .*did you mean 'answers'"),
        ({"chat_template": "deepseek-v4"}, "did you mean 'deepseek-v3'"),
        ({"sequence": 8}, "sequence is not a setting"),
        ({"sources": [{"path": "a", "weigth": 1}]}, "did you mean 'sources.0.weight'"),
        ({"sources": [{"path": "a", "weight": 0}]}, "sources.0.weight=0 is not allowed"),
    ],
)
def test_a_wrong_setting_is_refused(settings: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        DataConfig.parse({"sources": [SOURCE], "seq_len": 8, **settings})


def test_a_separator_belongs_to_texts():
    with pytest.raises(ConfigError, match=r"separator='\|' has no meaning with format='jsonl'"):
        SourceConfig.parse({"path": "a", "format": "jsonl", "separator": "|"})


def test_held_out_documents_need_a_share_that_is_held_out():
    held_out = {**SOURCE, "split": "held_out"}
    with pytest.raises(ConfigError, match="held_out_share=0 holds none out; raise held_out_share"):
        DataConfig.parse({"sources": [held_out], "seq_len": 8, "held_out_share": 0})
