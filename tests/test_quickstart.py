"""The notebook runs from its first cell to its last, and its outputs are not in the repository."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.support import runs

NOTEBOOK = json.loads((runs.ROOT / "docs/quickstart.ipynb").read_text())
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


@pytest.mark.long
def test_the_notebook_runs(tmp_path):
    """Its cells are plain Python, so that they run without Jupyter."""
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(CODE)],
        env=runs.clean_environment(PYTHONPATH=str(runs.ROOT), TMPDIR=str(tmp_path)),
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"accuracy 0\.\d\d on \d+ videos", done.stdout)
    assert "30 of 31 videos scored, {'corrupt': 1}\n0 scored the second time" in done.stdout


def test_the_notebook_is_kept_without_outputs():
    assert all(
        not cell["outputs"] and cell["execution_count"] is None for cell in NOTEBOOK["cells"] if "outputs" in cell
    )
