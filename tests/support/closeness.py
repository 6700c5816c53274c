"""Whether two ways of computing in floating point give the same result, on any processor.

Processors add in different orders, so their sums differ in the last bits. The error grows with the numbers that are
added. It is therefore measured relative to the largest value that is compared: an absolute bound that holds on one
machine need not hold on the next.
"""

from __future__ import annotations

from typing import Any

import torch

FLOAT64_ROUNDING = 1e-10
"""Bound in float64: for claims of equality, since no mistake is as small. Measured: up to 6e-15."""
FLOAT32_ROUNDING = 2e-5
"""Bound in float32: for what computes in nothing wider. Measured: up to 2e-6, with and without AVX-512 and AVX2."""


def relative_error(got: Any, expected: Any) -> float:
    """The largest difference of two arrays of one shape, relative to the largest absolute value of ``expected``.

    NaN, which is within no bound and beyond none, if a value of either is NaN or all values of both are 0.
    """
    got, expected = (torch.as_tensor(values, dtype=torch.float64).detach().cpu() for values in (got, expected))
    assert got.shape == expected.shape, f"shapes {tuple(got.shape)} and {tuple(expected.shape)}"
    return float((got - expected).abs().max() / expected.abs().max())


def assert_same(got: Any, expected: Any, *, relative: float) -> None:
    """``got`` is ``expected`` but for rounding; ``relative`` bounds `relative_error`."""
    error = relative_error(got, expected)
    assert error <= relative, f"differs by {error:.1e} of the largest value, allowed is {relative:.0e}"


def assert_differs(got: Any, expected: Any, *, relative: float, factor: float) -> None:
    """For controls: ``got`` is at least ``factor`` times as far from ``expected`` as `assert_same` allows."""
    error = relative_error(got, expected)
    assert error >= factor * relative, f"differs by {error:.1e} of the largest value, at least {factor * relative:.0e}"
