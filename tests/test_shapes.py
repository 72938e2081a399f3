"""The shape checker catches a tensor whose name lies."""

from pathlib import Path

import pytest
import torch
from shapes import checked_shapes
from torch import Tensor

HERE = str(Path(__file__).parent)


def two_axes_called_three() -> Tensor:
    x_BSD = torch.zeros(2, 3)
    return x_BSD


def two_sizes_of_one_axis() -> Tensor:
    x_TD, w_D = torch.zeros(2, 3), torch.zeros(4)
    return x_TD.sum() + w_D.sum()


def held_and_whole_axis(w_eD: Tensor, gate_E: Tensor) -> Tensor:
    return w_eD.sum() + gate_E.sum()


def name_that_is_no_suffix() -> Tensor:
    k_rope = torch.zeros(2, 3)
    return k_rope


def test_a_tensor_with_another_number_of_axes_than_its_name_is_caught():
    lie = r"two_axes_called_three: x_BSD has shape \(2, 3\)"
    with pytest.raises(AssertionError, match=lie), checked_shapes(HERE):
        two_axes_called_three()


def test_two_tensors_that_disagree_about_an_axis_are_caught():
    with pytest.raises(AssertionError, match="D is 4 in w_D, 3 in x_TD"), checked_shapes(HERE):
        two_sizes_of_one_axis()


def test_the_held_part_of_an_axis_may_differ_from_the_whole():
    with checked_shapes(HERE):
        assert held_and_whole_axis(torch.zeros(2, 3), torch.zeros(8)) == 0


def test_names_that_end_in_a_word_are_left_alone():
    with checked_shapes(HERE):
        assert name_that_is_no_suffix().shape == (2, 3)


def test_other_packages_are_left_alone():
    with checked_shapes():
        assert two_axes_called_three().shape == (2, 3)
