"""The folder that storage tests work in, on each kind of store."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of an empty folder on the store that the test is parametrised with."""
    match request.param:
        case "local":
            return str(tmp_path / "out")
        case "s3":
            return f"{request.getfixturevalue('s3_bucket')}/out"
        case "gcs":
            return f"{request.getfixturevalue('gcs_bucket')}/out"
        case "azure":
            return f"{request.getfixturevalue('azure_container')}/out"
        case _:
            return f"{request.getfixturevalue('memory_folder')}/out"
