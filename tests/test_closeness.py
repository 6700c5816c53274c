"""The comparison that numeric tests rest on can fail."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.closeness import assert_differs, assert_same, relative_error


def test_errors_are_relative_to_the_largest_value() -> None:
    assert relative_error([60.001, 0.0], np.array([60.0, 0.001])) == pytest.approx(0.001 / 60)
    assert relative_error(torch.tensor([1.0], dtype=torch.bfloat16), [-1.0]) == 2


@pytest.mark.parametrize("got", [[1.0, 2.1], [1.0, math.nan], [1.0, math.inf], [1.0], [[1.0, 2.0]]])
def test_what_is_not_the_same_fails(got: Any) -> None:
    assert_same([1.0, 2.0001], [1.0, 2.0], relative=1e-3)
    with pytest.raises(AssertionError):
        assert_same(got, [1.0, 2.0], relative=1e-3)


@pytest.mark.parametrize("got", [[1.0, 2.1], [1.0, math.nan], [1.0]])
def test_a_control_that_is_too_near_or_no_number_fails(got: Any) -> None:
    assert_differs([1.0, 2.3], [1.0, 2.0], relative=1e-3, factor=100)
    with pytest.raises(AssertionError):
        assert_differs(got, [1.0, 2.0], relative=1e-3, factor=100)
