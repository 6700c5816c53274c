"""The demo's videos: labelled by folder, and the same for the same seed."""

from __future__ import annotations

from pathlib import Path

from vidray.cli.demo import MOTIONS, make_labelled_bucket
from vidray.sources.labels import LabelSource, load_labelled


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.mp4")}


def test_a_labelled_bucket_can_be_trained_on(tmp_path: Path) -> None:
    make_labelled_bucket(tmp_path, num_videos=12)
    manifest = load_labelled(LabelSource(source=(str(tmp_path),)))
    assert manifest.labels == tuple(sorted(MOTIONS))
    assert {manifest.count("train"), manifest.count("val")} == {6}


def test_the_seed_decides_what_is_in_a_labelled_bucket(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 100)):
        make_labelled_bucket(tmp_path / name, num_videos=6, seed=seed)
    first, again, unseen = (contents(tmp_path / name) for name in "abc")
    assert first == again
    assert first.keys() == unseen.keys()
    assert not set(first.values()) & set(unseen.values())
