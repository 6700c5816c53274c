"""Joining Ray: what a user is told when it does not work."""

from __future__ import annotations

import socket
import time

import pytest

from vidray.cluster import connected, explain
from vidray.errors import RunError, UsageError


def test_an_address_where_nothing_listens_is_refused_at_once_and_named(monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # other tests may have left this process connected
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: nobody else can answer there
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(UsageError, match=f"--ray-address {address}: no Ray cluster answers there"):
            connected(address).__enter__()
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(UsageError, match=f"RAY_ADDRESS={address}"):
            connected(None).__enter__()
        assert time.monotonic() - started < 30


def test_our_own_errors_come_out_of_rays_pages_as_they_were_raised():
    pages = 'ray::MapWorker.submit() (pid=1)\n  File "x.py", line 1, in f\n{}\nTo change retry attempts, do this'
    usage = explain(RuntimeError(pages.format("vidray.errors.UsageError: no such device")))
    assert (type(usage), str(usage)) == (UsageError, "no such device")
    run = explain(RuntimeError(pages.format("vidray.errors.RunError: no decoder process could be started")))
    assert (type(run), str(run)) == (RunError, "no decoder process could be started")


def test_another_cause_is_named_without_rays_hints():
    text = (
        "ray::f()\nKeyError: 'label'\nray.data.exceptions.UserCodeException: UDF failed\nTo change retry attempts, do"
    )
    error = explain(RuntimeError(text), what="the workers failed: ")
    assert isinstance(error, RunError)
    assert str(error).startswith("the workers failed: KeyError: 'label' (Ray's logs")
