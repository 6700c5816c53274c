"""Freed memory is kept for what comes next, by any thread, where the process was started for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from vidray.cpu_tuning import ENVIRONMENT

FAULTS = """
import resource, sys, threading
import numpy as np
from vidray.cpu_tuning import keep_freed_memory

if "keep" in sys.argv:
    keep_freed_memory()

def fill():
    for _ in range(3):
        np.ones(100_000_000, np.uint8)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)

faults = []
threading.Thread(target=lambda: np.ones(1)).start()
thread = threading.Thread(target=fill)
thread.start()
thread.join()
print(faults[-1] - faults[-2])
"""
"""Prints the page faults of a thread that fills memory as large as that which it has freed."""


def page_faults(*arguments: str, **environment: str) -> int:
    own = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    # Huge pages would make a fault of 512.
    own |= {"NUMPY_MADVISE_HUGEPAGE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, *arguments], env=own | environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_a_thread_fills_kept_memory_without_a_page_fault():
    assert page_faults("keep", **ENVIRONMENT) < 100


def test_control_memory_that_is_not_kept_is_mapped_anew():
    assert page_faults() > 10_000
