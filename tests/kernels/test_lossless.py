"""bfloat16 in 12 bits: whatever goes in comes out, bit by bit."""

import pytest
import torch
from torch import Tensor

from moesaic.errors import CheckpointError
from moesaic.kernels.native import lossless
from moesaic.kernels.native.build import library
from moesaic.kernels.native.pack import Rows, as_rows, row_bytes

pytestmark = pytest.mark.skipif(isinstance(library(), str), reason=f"not compiled: {library()}")

WIDTHS = (1, 31, 63, 64, 65, 127, 128, 129, 191, 192, 193, 255, 256, 320, 704, 1000, 2048)


def packed(weight: Tensor) -> Rows:
    n, width = weight.shape
    rows = Rows.empty(n, width, "lossless")
    rows.put_(weight, "some.weight")
    return rows


def bits(weight: Tensor) -> Tensor:
    return weight.view(torch.int16)


def values(rows: Rows) -> Tensor:
    assert rows.scales is not None
    assert rows.others is not None
    return lossless.values_of(rows.values, rows.scales, rows.others, rows.width)


def of_bits(numbers: Tensor) -> Tensor:
    return numbers.to(torch.int16).view(torch.bfloat16)


def weights(n: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, width, generator=generator) * 0.02).bfloat16()


@pytest.mark.parametrize("width", WIDTHS)
def test_weights_come_out_as_they_went_in(width: int):
    weight = weights(9, width)
    assert torch.equal(bits(values(packed(weight))), bits(weight))


def test_every_value_that_there_is_comes_out_as_it_went_in():
    """Not-a-number, too, with all that its bits may be."""
    rest = torch.cat((torch.arange(128), torch.arange(128) + 2**15))
    every = of_bits(torch.arange(256).unsqueeze(1) * 128 + rest)
    assert len(every.view(torch.int16).unique()) == 2**16
    assert torch.equal(bits(values(packed(every))), bits(every))


@pytest.mark.parametrize("width", WIDTHS)
def test_values_far_from_the_others_come_out_too(width: int):
    """As many as there is room for, wherever they are."""
    weight, n = weights(20, width), min(width, lossless.n_others(width))
    far = of_bits(torch.tensor([0x7F80, 0xFFC1, 0x0080, 0x8100, 0x7F00, 0xC800, 0x0300]))
    for row in weight:
        places = torch.randperm(width, generator=torch.Generator().manual_seed(n))[:n]
        row[row.abs() < 1e-5] = 0.01
        row[places] = far.repeat(n)[:n]
    rows = packed(weight)
    assert torch.equal(bits(values(rows)), bits(weight))


def test_a_row_goes_by_the_exponents_that_most_of_its_values_have():
    weight = weights(2, 2048)
    weight[0, :12] = 1000.0
    weight[1] = 1.0
    weight[1, 5:17] = 1e-20
    rows = packed(weight)
    assert torch.equal(values(rows), weight)
    assert rows.scales is not None
    assert (rows.scales[:, 1] >= 12).all()


def test_zeros_of_either_sign_and_values_near_them_need_no_room():
    weight = weights(3, 300)
    weight[:, ::2] = 0.0
    weight[:, 1::4] = -0.0
    weight[:, 3::8] = of_bits(torch.tensor(0x8001))
    rows = packed(weight)
    assert torch.equal(bits(values(rows)), bits(weight))
    assert rows.scales is not None
    assert (rows.scales[:, 1] == 0).all()


def test_a_row_with_too_many_other_exponents_is_refused():
    weight = weights(4, 256)
    room = lossless.n_others(256)
    weight[2, 10 : 11 + room] = 1e30
    with pytest.raises(
        CheckpointError,
        match=rf"row 2 of some.weight has over {room} values whose exponents .* use form=weights",
    ):
        packed(weight)
    weight[2, 10] = 0.01
    assert torch.equal(values(packed(weight)), weight)


def test_a_row_takes_three_quarters_of_its_bytes_and_a_little_beside():
    for width in (1024, 1408, 2048, 7168):
        assert lossless.bytes_of(width) == 1.5 * width
        assert row_bytes(width, "lossless") == packed(weights(1, width)).n_bytes
        assert row_bytes(width, "lossless") <= 0.78 * 2 * width
    assert lossless.bytes_of(704) == 5 * 192 + 128  # half a window, up to the next line


def test_the_widest_row_has_as_many_others_as_a_byte_counts():
    weight = torch.full((1, 2**16), 0.01, dtype=torch.bfloat16)
    weight[0, 7 : 7 + 255 * 200 : 200] = 1e25
    assert lossless.n_others(2**16) == 255
    assert torch.equal(values(packed(weight)), weight)
    with pytest.raises(
        CheckpointError,
        match=r"rows of some\.weight have 65537 values, .* at most 65536; use form=weights",
    ):
        packed(weights(1, 2**16 + 1))


def test_parts_of_rows_are_in_their_memory():
    weight = weights(10, 200)
    weight[4, 3] = 1e20
    rows = packed(torch.zeros_like(weight))
    rows.part(2, 7).put_(weight[2:7])
    assert torch.equal(values(rows)[2:7], weight[2:7])
    assert (values(rows)[:2] == 0).all()
    assert torch.equal(rows.part(4, 6).floats(), weight[4:6].float())


def test_float32_is_not_made_bfloat16_unasked():
    with pytest.raises(
        CheckpointError, match=r"form=lossless holds bfloat16 and no torch\.float32"
    ):
        as_rows(torch.zeros(2, 64), "lossless")
