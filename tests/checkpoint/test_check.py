"""A folder that does not fit its model is told tensor by tensor, with the fix."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint.damage import edit_json, edit_tensors, only_problem

from moesaic.checkpoint.check import check
from moesaic.checkpoint.load import Reader
from moesaic.config.published import read_config

Fresh = Callable[..., Path]
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"


@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn"])
def test_what_is_written_here_is_sound(fresh: Fresh, family: str, dtype: str) -> None:
    report = check(fresh(family, dtype))
    assert report.is_sound
    assert not report.warnings
    assert report.text().endswith("\nsound")


def test_a_missing_tensor_is_named(fresh: Fresh) -> None:
    folder = fresh("v2")
    edit_tensors(folder, lambda found: found.pop(Q_PROJ))
    text = only_problem(check(folder), "missing", Q_PROJ)
    assert text == f"{Q_PROJ} is missing; fetch the file that holds it"


def test_a_tensor_no_model_has_is_named(fresh: Fresh) -> None:
    folder, wrong = fresh("v2"), NORM.replace("weight", "weigth")
    edit_tensors(folder, lambda found: found.update({wrong: torch.ones(16)}))
    text = only_problem(check(folder), "unexpected", wrong)
    assert f"{wrong} is no tensor of this model; did you mean '{NORM}'?; remove it" in text


def test_a_wrong_shape_is_told_with_the_right_one(fresh: Fresh) -> None:
    folder = fresh("v2")
    edit_tensors(folder, lambda found: found.update({NORM: torch.ones(15)}))
    text = only_problem(check(folder), "wrong shape", NORM)
    assert f"{NORM} has shape [15], config.json makes it [16]; fetch the config.json" in text


@pytest.mark.parametrize(("dtype", "name"), [(torch.int32, "I32"), (torch.float64, "F64")])
def test_a_wrong_type_is_told_with_the_right_ones(
    fresh: Fresh, dtype: torch.dtype, name: str
) -> None:
    folder = fresh("v2")
    edit_tensors(folder, lambda found: found.update({NORM: torch.ones(16, dtype=dtype)}))
    text = only_problem(check(folder), "wrong type", NORM)
    assert f"{NORM} is stored as {name}, weights are BF16, F16, F32 or F8_E4M3" in text


def test_rotary_frequencies_of_old_tools_are_ignored(fresh: Fresh) -> None:
    folder, name = fresh("v1"), "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(folder, lambda found: found.update({name: torch.ones(4)}))
    report = check(folder)
    assert (report.is_sound, report.ignored) == (True, (name,))
    assert f"ignored: 1 tensors such as {name}" in report.text()


def test_a_head_that_repeats_the_embedding_may_be_there_or_not(fresh: Fresh) -> None:
    folder = fresh("v2", tie_word_embeddings=True)
    assert check(folder).is_sound
    embedding = "model.embed_tokens.weight"
    edit_tensors(folder, lambda found: found.update({"lm_head.weight": found[embedding]}))
    assert check(folder).is_sound
    edit_tensors(folder, lambda found: found.update({"lm_head.weight": found[embedding] + 1}))
    text = only_problem(check(folder), "damaged", "lm_head.weight")
    assert f"lm_head.weight differs from {embedding}, which it must repeat" in text
    assert "set tie_word_embeddings to false" in text


def test_repeats_of_a_prediction_module_may_be_absent_but_not_different(fresh: Fresh) -> None:
    folder, name = fresh("v3"), "model.layers.3.embed_tokens.weight"
    edit_tensors(folder, lambda found: found[name].add_(1))
    assert "fetch both again" in only_problem(check(folder), "damaged", name)
    edit_tensors(folder, lambda found: found.pop(name))
    assert check(folder).is_sound
    assert torch.equal(Reader(folder).read(name), Reader(folder).read("model.embed_tokens.weight"))


def test_half_a_prediction_module_is_refused_and_none_is_told(fresh: Fresh) -> None:
    folder, name = fresh("v3"), "model.layers.3.eh_proj.weight"
    edit_tensors(folder, lambda found: found.pop(name))
    assert "set num_nextn_predict_layers to 0" in only_problem(check(folder), "missing", name)

    def drop(found: dict[str, Any]) -> None:
        for name in [name for name in found if name.startswith("model.layers.3.")]:
            del found[name]

    edit_tensors(folder, drop)
    report = check(folder)
    assert (report.is_sound, report.config.num_nextn_predict_layers) == (True, 0)
    assert "the model is read without them" in report.warnings[0]


def test_a_prediction_module_the_configuration_does_not_know_is_refused(fresh: Fresh) -> None:
    folder = fresh("v3")
    edit_json(folder / "config.json", lambda data: data.update(num_nextn_predict_layers=0))
    report = check(folder)
    assert set(report.names("unexpected")) == {
        name for name in report.stored if name.startswith("model.layers.3.")
    }
    assert "set num_nextn_predict_layers in config.json" in report.text()
    assert "more tensors unexpected" in report.text()


def test_fp8_weights_need_scales_of_their_own(fresh: Fresh) -> None:
    folder, scale = fresh("v2", "float8_e4m3fn"), f"{Q_PROJ}_scale_inv"
    edit_tensors(folder, lambda found: found.update({scale: found[scale].half()}))
    assert "is stored as F16, scales are F32" in only_problem(check(folder), "wrong type", scale)
    edit_tensors(folder, lambda found: found.update({scale: torch.ones(2, 1)}))
    assert "needs [1, 1]" in only_problem(check(folder), "wrong shape", scale)
    edit_tensors(folder, lambda found: found.pop(scale))
    assert f"the scales of the FP8 blocks of {Q_PROJ}" in only_problem(
        check(folder), "missing", scale
    )


def test_fp8_weights_need_blocks_in_the_configuration(fresh: Fresh) -> None:
    folder = fresh("v2", "float8_e4m3fn")
    edit_json(folder / "config.json", lambda data: data.pop("quantization_config"))
    assert "config.json has no quantization_config" in check(folder).text()


def test_scales_of_a_weight_that_is_not_fp8_are_refused(fresh: Fresh) -> None:
    folder, scale = fresh("v2"), f"{Q_PROJ}_scale_inv"
    edit_tensors(folder, lambda found: found.update({scale: torch.ones(1, 1)}))
    text = only_problem(check(folder), "unexpected", scale)
    assert f"{scale} scales {Q_PROJ}, which is not stored as F8_E4M3; remove it" in text


def test_the_configuration_is_the_one_beside_the_weights(fresh: Fresh) -> None:
    assert check(fresh("v1")).config == read_config(fresh("v1", name="again"))
