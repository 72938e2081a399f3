"""Quantised folders are decoded from the codes they store."""

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from models import random_ids, random_model

from moesaic.checkpoint.load import Reader
from moesaic.checkpoint.quantise import Form as StoredForm
from moesaic.checkpoint.quantise import quantise_folder
from moesaic.checkpoint.save import save
from moesaic.config.presets import get_preset
from moesaic.errors import ConfigError
from moesaic.infer.blocks import BlockPool, Held
from moesaic.infer.decoder import Fed, TorchDecoder, build_decoder
from moesaic.infer.held import HeldExperts, HeldLinear
from moesaic.infer.load import load_held
from moesaic.infer.stored import Source
from moesaic.kernels.native.build import library
from moesaic.kernels.native.pack import Form, Rows
from moesaic.model.build import load_model
from moesaic.model.transformer import Transformer
from moesaic.planner.inventory import tensors

pytestmark = pytest.mark.skipif(isinstance(library(), str), reason=f"not compiled: {library()}")

KINDS: dict[StoredForm, str] = {"8": "int8", "4": "int4", "fp8": "float8"}


SMALL = {
    "hidden_size": 64,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 2,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
}


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``quantised(form, group=64, preset="tiny-v3")``: a checkpoint with random weights."""

    @cache
    def write(form: StoredForm, group: int = 64, preset: str = "tiny-v3") -> Path:
        groups = {"n_group": 2, "topk_group": 1} if preset == "tiny-v3" else {}
        config, folder = get_preset(preset).changed(**SMALL, **groups), tmp_path_factory.mktemp("q")
        save(folder / "plain", config, random_model(config).state_dict(), "bfloat16")
        quantise_folder(Reader(folder / "plain"), folder / "fewer", form, group, lambda _: None)
        return folder / "fewer"

    return write


def logits(model: Transformer, ids: torch.Tensor, dtype: torch.dtype = torch.float32):
    pool = BlockPool(model.config, 8, block=8, dtype=dtype)
    [found] = build_decoder(model, pool).feed([Fed(Held(pool), tuple(ids.tolist()), "all")])
    return found.logits_TV


def held(model: Transformer) -> list[Rows]:
    """What is held as rows."""
    found = [each.rows for each in model.modules() if isinstance(each, HeldLinear)]
    for module in model.modules():
        if isinstance(module, HeldExperts):
            found += [module.rows_in, module.rows_out]
    return found


@pytest.mark.parametrize(
    ("form", "group"), [("8", 64), ("4", 64), ("4", 128), ("4", 32), ("8", 32), ("fp8", 64)]
)
def test_rows_stand_for_exactly_what_is_stored(
    quantised: Callable[..., Path], form: StoredForm, group: int
):
    reader = Reader(quantised(form, group))
    source = Source(reader, torch.float32, "weights", keeps_codes=True)
    kinds = set()
    for spec in tensors(reader.config):
        if spec.may_be_quantised:
            rows = Rows.empty(spec.shape[0], spec.shape[1], source.kind(spec))
            source.read_into_(rows, spec.name)
            assert torch.equal(rows.floats(), reader.read(spec.name).float()), spec.name
            kinds.add(rows.kind)
    as_stored = group in (64, 128) or form == "fp8"  # of groups of 32 there is no compiled form
    assert kinds == ({KINDS[form], "float32"} if as_stored else {"float32"})


@pytest.mark.parametrize("preset", ["tiny-v1", "tiny-v2", "tiny-v3"])
@pytest.mark.parametrize(
    ("form", "within"),
    # What integers are multiplied with is rounded to 8 bits, what 8-bit floats are to bfloat16.
    [("8", 0.02), ("4", 0.02), ("fp8", 0.01)],
)
def test_codes_give_what_the_weights_they_stand_for_give(
    quantised: Callable[..., Path], form: StoredForm, within: float, preset: str
):
    folder = quantised(form, preset=preset)
    model = load_held(folder)
    ids = random_ids(model.config, 24)
    reference = load_model(folder)(ids.unsqueeze(0))[0].detach()
    apart = (logits(model, ids) - reference).norm(dim=-1) / reference.norm(dim=-1)
    assert apart.median() < within


def test_torch_finds_the_same_weights_in_them(quantised: Callable[..., Path]):
    folder = quantised("4")
    model, ids = load_held(folder), random_ids(get_preset("tiny-v3"), 8)
    decoder = TorchDecoder(model, BlockPool(model.config, 4, block=8, dtype=torch.float32))
    [found] = decoder.feed([Fed(Held(decoder.pool), tuple(ids.tolist()), "all")])
    reference = load_model(folder)(ids.unsqueeze(0))[0].detach()
    torch.testing.assert_close(found.logits_TV, reference, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("form", ["8", "4", "fp8"])
def test_a_quantised_folder_takes_its_own_size_in_memory(
    quantised: Callable[..., Path], form: StoredForm
):
    folder = quantised(form)
    model = load_held(folder, "bfloat16")
    taken = sum(rows.n_bytes for rows in held(model))
    taken += sum(each.nbytes for each in (*model.parameters(), *model.buffers()))
    # Small rows of 8-bit floats have many scales, each of which is held once per row.
    assert taken < 1.07 * Reader(folder).report.n_bytes


def test_integers_are_not_rounded_to_others(quantised: Callable[..., Path]):
    folder = quantised("8")
    with pytest.raises(
        ConfigError, match=r"form=int4 would round once more what .* stores as integers; leave form"
    ):
        load_held(folder, form="int4")


@pytest.mark.parametrize("preset", ["tiny-v1", "tiny-v2", "tiny-v3"])
def test_what_is_lossless_is_decoded_to_the_same_bits(tmp_path: Path, preset: str):
    config = get_preset(preset)
    save(tmp_path / "model", config, random_model(config).state_dict(), "bfloat16")
    ids = random_ids(config, 24)
    plain, packed = (
        load_held(tmp_path / "model", "bfloat16", form=form) for form in ("weights", "lossless")
    )
    kinds = {rows.kind for rows in held(packed)}
    assert kinds == {"lossless"}
    got, want = (logits(model, ids, torch.bfloat16) for model in (packed, plain))
    assert torch.equal(got, want)


def test_8_bit_floats_stay_what_they_are_beside_what_is_lossless(quantised: Callable[..., Path]):
    folder = quantised("fp8")
    plain, packed = (load_held(folder, "bfloat16", form=f) for f in ("weights", "lossless"))
    assert {rows.kind for rows in held(packed)} == {"float8", "lossless"}
    ids = random_ids(packed.config, 24)
    got, want = (logits(model, ids, torch.bfloat16) for model in (packed, plain))
    assert torch.equal(got, want)


def test_only_bfloat16_is_held_lossless(quantised: Callable[..., Path]):
    with pytest.raises(
        ConfigError,
        match=r"form=lossless holds bfloat16 and no torch\.float32; set dtype=bfloat16, or leave",
    ):
        load_held(quantised("fp8"), form="lossless")


@pytest.mark.parametrize("form", ["lossless", "int8"])
def test_forms_are_for_a_cpu(quantised: Callable[..., Path], form: Form):
    with pytest.raises(
        ConfigError, match=f"form={form} is for a CPU; leave it out, or device=meta"
    ):
        load_held(quantised("fp8"), "bfloat16", "meta", form)


_PEAK = """
import sys, torch
from pathlib import Path
from moesaic.infer.generate import generate
from moesaic.infer.load import load_held
from moesaic.kernels.native.build import library

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

torch.set_num_threads(1)
library()
folder, memory = sys.argv[1], int(sys.argv[2]) or None
before = status("VmRSS")
model = load_held(folder, "bfloat16", memory=memory)
[text] = generate(model, [list(range(40))], max_new_tokens=8)
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells the peak")
@pytest.mark.parametrize(("form", "share"), [(None, 1 / 3), ("4", 2 / 3)])
def test_the_process_takes_what_the_weights_may_take_and_little_more(
    tmp_path: Path, form: StoredForm | None, share: float
):
    sizes = {"hidden_size": 512, "moe_intermediate_size": 704, "num_hidden_layers": 3}
    config = get_preset("mid-v2").changed(**sizes, n_routed_experts=24, vocab_size=2048)
    folder = tmp_path / "plain"
    save(folder, config, random_model(config, dtype="bfloat16").state_dict(), "bfloat16")
    if form is not None:
        folder = tmp_path / "fewer"
        quantise_folder(Reader(tmp_path / "plain"), folder, form, 64, lambda _: None)
    stored = Reader(folder).report.n_bytes
    memory = int(share * stored)
    bounded, whole = (
        int(
            subprocess.run(
                [sys.executable, "-c", _PEAK, str(folder), str(given)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for given in (memory, 0)
    )
    most = 64 * 2**20  # activations, the cache, and code that is loaded when it is first needed
    assert bounded < memory + most
    assert 0.95 * stored < whole < stored + most
