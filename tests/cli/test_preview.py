"""A preview shows what training and validation see, and nothing else."""

from __future__ import annotations

import io
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.checkpoints import make_videomae
from tests.support.videos import make_video
from vidray.cli.main import main as cli
from vidray.cli.main import parse
from vidray.cli.preview import PreviewConfig, Shown, animation, contact_sheet, training_clips
from vidray.sources.labels import LabelSource, load_labelled
from vidray.training.config import TrainConfig
from vidray.training.data.clip_source import make_clip_source
from vidray.training.data.pools import LocalClipPool
from vidray.types import ViewConfig

VIEW = ViewConfig(num_frames=4, size=32, stride=1, num_clips=1)
SHOWN = [
    Shown(caption="größe 大", frames=np.stack([np.full((32, 32, 3), 60 * t, np.uint8) for t in range(4)])),
    Shown(caption="bad: corrupt", frames=None),
    Shown(caption="c", frames=np.full((4, 32, 32, 3), 90, np.uint8)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos of two labels, one of them broken; and a checkpoint, in ``model``."""
    folder = tmp_path_factory.mktemp("preview")
    for number in range(6):
        path = folder / "videos" / "ab"[number % 2] / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make_video(num_frames=40, width=64, height=64))
    (folder / "videos" / "a" / "4.mp4").write_bytes(b"\0" * 100)
    make_videomae(folder / "model", num_frames=4, size=32)
    return folder


def test_a_contact_sheet_has_a_row_of_frames_per_clip() -> None:
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet(SHOWN, view=VIEW))))
    assert sheet.shape == (3 * (32 + 4 + 14) + 4, 4 * (32 + 4) + 4, 3)
    tiles = sheet[4 + 14 : 4 + 14 + 32]
    for time in range(4):
        assert (tiles[:, 4 + 36 * time : 36 + 36 * time] == 60 * time).all()
    bad = sheet[4 + 50 + 14 : 4 + 50 + 14 + 32]
    assert len(np.unique(bad)) == 1, "a bad video's row is empty"


def test_an_animation_shows_all_clips_as_long_as_they_last() -> None:
    picture = Image.open(io.BytesIO(animation(SHOWN, view=ViewConfig(num_frames=4, size=32, stride=15))))
    assert picture.n_frames == 4
    assert picture.info["duration"] == 500
    assert picture.info["loop"] == 0
    levels = []
    for time in range(4):
        picture.seek(time)
        levels.append(int(np.asarray(picture.convert("RGB"))[30, 20].mean()))
    np.testing.assert_allclose(levels, [0, 60, 120, 180], atol=3)  # a GIF has a palette of 256 colours


def preview_config(folder: Path, **values: object) -> PreviewConfig:
    return PreviewConfig(source=(str(folder / "videos"),), model=str(folder / "model"), **values)  # type: ignore[arg-type]


def test_a_preview_shows_the_clips_that_training_begins_an_epoch_with(folder: Path) -> None:
    config = preview_config(folder, recipe="videomae", epoch=2, num_videos=3, stride=1)
    table = load_labelled(LabelSource(source=config.source, validation_share=config.validation_share)).rows_of("train")
    shown = training_clips(table, config=config, view=VIEW)
    source = make_clip_source(
        table,
        config.train_config,
        rank=0,
        world_size=1,
        view=VIEW,
        make_pool=lambda spec: LocalClipPool(spec, num_parallel=1),
    )
    batch = next(source.batches(2))
    source.close()
    for slot, clip in enumerate(shown):
        row = table.slice(int(batch.rows[slot]), 1).to_pylist()[0]
        assert clip.caption.startswith(f"{row['label']} · {row['uri'].rpartition('/')[2]}")
        assert (clip.frames is not None) == bool(batch.weights[slot])
        if clip.frames is not None:
            np.testing.assert_array_equal(clip.frames, batch.pixels[slot].numpy())


@pytest.mark.parametrize("name", ["sheet.png", "clips.gif"])
@pytest.mark.parametrize("augmented", [True, False], ids=["training", "validation"])
def test_the_command_writes_a_picture(
    folder: Path, tmp_path: Path, name: str, augmented: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / name
    output.write_bytes(b"an older one")
    flags = ["--source", str(folder / "videos"), "--model", str(folder / "model"), "--output", str(output)]
    assert cli(["preview", *flags, *([] if augmented else ["--no-augmented"])]) == 0
    text = capsys.readouterr().out
    assert f"clips, in {output}" in text.replace(", 1 of them bad", "")
    following = text.splitlines()[-1]
    assert following.startswith("next: vidray train ")
    parse(TrainConfig, shlex.split(following)[3:], prog="vidray train")
    with Image.open(output) as picture:
        assert picture.format == {"png": "PNG", "gif": "GIF"}[name[-3:]]


def test_other_kinds_of_output_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--source", str(folder / "videos"), "--model", str(folder / "model"), "--output", "x.mp4"]
    assert cli(["preview", *flags]) == 2
    assert "allowed are names that end in .png or .gif" in capsys.readouterr().err
