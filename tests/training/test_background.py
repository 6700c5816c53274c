"""States are uploaded in order while training goes on, and a failure is not lost."""

from __future__ import annotations

import threading

import pytest

from vidray.errors import RunError
from vidray.training.loop.background import BackgroundThread


def test_the_background_keeps_the_order_and_reports_a_failure():
    order: list[int] = []
    gate = threading.Event()
    background = BackgroundThread()
    background.submit(lambda: (gate.wait(10), order.append(1)))
    background.submit(lambda: order.append(2))
    assert order == []
    gate.set()
    background.finish()
    assert order == [1, 2]

    def fail() -> None:
        raise OSError("no space")

    background.submit(fail)
    with pytest.raises(RunError, match="no space"):
        background.finish()
    background.close()
