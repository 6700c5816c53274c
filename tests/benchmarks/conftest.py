"""What the benchmarks run on in tests: two small clips."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.videos import make_video


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two clips of 80 frames: longer than what the guide's sampler draws from each."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(2):
        (folder / f"clip_{number}.mp4").write_bytes(make_video(num_frames=80))
    return folder
