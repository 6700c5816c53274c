"""An output on a full disk ends the run with one line; when there is room again, the same command goes on."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import runs
from tests.support.checkpoints import make_videomae

FLAGS = (*runs.TINY_VIEWS, "--rows-per-part", "4", "--fetch-threads", "1", "--runner", "local")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 512 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_no_room_for_a_part(small_disk: Path, tmp_path: Path) -> None:
    uris = runs.make_bucket(tmp_path / "videos", num_videos=64)
    model = make_videomae(tmp_path / "model")
    output = small_disk / "out"
    arguments = runs.command(source=tmp_path / "videos", model=model, output=output, flags=FLAGS)
    process = runs.start(arguments)
    runs.wait_until(lambda: len(runs.parts(output)) >= 1 or process.poll() is not None, what="the first part")
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "filler").write_bytes(bytes(2**20))
    text = runs.finish(process, code=1)
    assert "No space left on device" in text
    assert "Traceback" not in text
    assert len(runs.parts(output)) < 16
    (small_disk / "filler").unlink()
    runs.run(arguments)
    runs.assert_each_once(output, uris)
