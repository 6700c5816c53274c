"""``--decoder pytorchvideo`` gives the frames that ours gives, through the same sandbox, limits and statuses."""

from __future__ import annotations

import dataclasses
import io
import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.support import runs
from tests.support.checkpoints import make_videomae
from tests.support.videos import audio_only, make_video, resized_midway
from vidray.cli.main import main as cli
from vidray.errors import VideoError
from vidray.sandbox.sandbox import Sandbox
from vidray.scoring.config import ScoreConfig
from vidray.scoring.job import ScoreJob
from vidray.types import Limits, Status, ViewConfig
from vidray.video.decoder import VideoDecoder
from vidray.video.random_crops import ClipDraw, CropConfig
from vidray.video.views import decode_views

OURS = ViewConfig(num_frames=8, size=48, num_clips=3, num_crops=3)
THEIRS = dataclasses.replace(OURS, decoder="pytorchvideo")
VIDEOS: dict[str, dict] = {
    "B-frames": {"num_frames": 90, "max_b_frames": 3, "options": {"preset": "medium", "qp": "10"}},
    "variable rate": {"num_frames": 40, "pts": [i * i for i in range(40)], "time_base": Fraction(1, 500)},
    "25 frames per second": {"num_frames": 60, "fps": 25, "container": "matroska"},
    "shorter than a clip": {"num_frames": 5},
    "no duration": {"num_frames": 60, "container": "webm", "codec": "libvpx-vp9", "options": {"crf": "4", "b": "8M"}},
}
RESIZING = 2.0
"""Mean difference of pixels, of 255: both resize with the same filter, but one in 4:2:2 and one in RGB. Another frame's
number in the picture makes it larger than 5."""


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(view=THEIRS, limits=Limits(max_pixels=64 * 64)) as sandbox:
        yield sandbox


@pytest.mark.parametrize("kind", VIDEOS)
def test_in_the_sandbox_both_decoders_give_the_same_frames(kind: str, sandbox: Sandbox) -> None:
    data = make_video(**VIDEOS[kind])
    theirs, info = sandbox.decode(data)
    ours, expected = decode_views(data, view=OURS, limits=Limits())
    assert np.abs(theirs.astype(int) - ours).mean() < RESIZING
    assert (info.duration_seconds, info.width, info.codec) == (
        expected.duration_seconds,
        expected.width,
        expected.codec,
    )
    other = np.roll(ours, 1, axis=1)
    assert np.abs(other.astype(int) - ours).mean() > RESIZING or kind == "shorter than a clip", "the control differs"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\0" * 99, Status.CORRUPT),
        (audio_only(), Status.NO_VIDEO),
        (b"#EXTM3U\n#EXTINF:1\nfile:///etc/passwd\n", Status.UNSUPPORTED),
        (make_video(num_frames=3, width=96, height=96), Status.TOO_LARGE),
    ],
)
def test_what_cannot_be_decoded_has_the_same_status(data: bytes, status: Status, sandbox: Sandbox) -> None:
    with pytest.raises(VideoError) as raised:
        sandbox.decode(data)
    assert raised.value.status is status


def test_of_several_streams_the_first_is_decoded_and_described() -> None:
    data = make_video(num_frames=60, num_video_streams=2, container="matroska", default_stream=1)
    theirs, _ = decode_views(data, view=THEIRS, limits=Limits())
    ours, _ = decode_views(data, view=dataclasses.replace(OURS, video_stream="first"), limits=Limits())
    assert np.abs(theirs.astype(int) - ours).mean() < RESIZING


def test_training_clips_show_the_same_times_and_boxes() -> None:
    data = make_video(num_frames=90, width=120, height=90)
    draw = ClipDraw(crop=CropConfig(mode="random", min_short_side=50, max_short_side=64), seed=5)
    one = {"num_clips": 1, "num_crops": 1}
    clips = [
        decode_views(data, view=dataclasses.replace(view, **one), limits=Limits(), draw=draw)[0]
        for view in (OURS, THEIRS)
    ]
    assert np.abs(clips[0].astype(int) - clips[1]).mean() < RESIZING


@pytest.mark.long
def test_whole_jobs_agree(tmp_path, capfd) -> None:
    """Scoring, and training from there; rows say which decoder made them, by another result key."""
    model = make_videomae(tmp_path / "model", initializer_range=0.02)
    videos = runs.make_classes(tmp_path / "videos", num_videos=12, num_frames=12)
    (videos / "left" / "broken.mp4").write_bytes(b"\0" * 99)
    output = tmp_path / "out"
    for decoder in ("vidray", "pytorchvideo"):
        config = ScoreConfig(
            **{"source": (str(videos),), "model": str(model), "output": str(output), "runner": "local"},
            **{"views": "2x1", "decoder": decoder, "max_failure_rate": 0.1},
        )
        ScoreJob(config).run()
    rows = sorted(runs.read_rows(output), key=lambda row: (row["result_key"], row["uri"]))
    first, second = rows[:13], rows[13:]
    assert len(second) == 13
    for mine, theirs in zip(first, second, strict=True):
        assert (mine["uri"], mine["status"], mine["label"]) == (theirs["uri"], theirs["status"], theirs["label"])
        assert mine["score"] == (None if theirs["score"] is None else pytest.approx(theirs["score"], abs=0.01))
    places = ["--source", str(videos), "--model", str(model), "--output", str(tmp_path / "trained")]
    flags = ["--epochs", "1", "--views", "1x1", "--no-flip", "--decoder", "pytorchvideo", "--max-failure-rate", "0.5"]
    assert cli(["train", *places, *flags]) == 0
    assert '"decoder": "pytorchvideo"' in (tmp_path / "trained/vidray.json").read_text()


@pytest.mark.long
def test_evaluations_agree(tmp_path) -> None:
    """The labels that each finds for each video, and their scores."""
    model = make_videomae(tmp_path / "model", labels=("left", "right"), initializer_range=0.02)
    videos = runs.make_classes(tmp_path / "videos", num_videos=8, num_frames=12)
    found = []
    for decoder in ("vidray", "pytorchvideo"):
        output = tmp_path / decoder
        flags = ["--views", "2x1", "--decoder", decoder, "--device", "cpu", "--output", str(output)]
        assert cli(["evaluate", "--source", str(videos), "--model", str(model), *flags]) == 0
        found.append(pq.read_table(output / "evaluation.parquet").sort_by("uri").to_pylist())
    assert len(found[0]) == 8
    for mine, theirs in zip(*found, strict=True):
        assert (mine["uri"], mine["predicted"]) == (theirs["uri"], theirs["predicted"])
        assert mine["score"] == pytest.approx(theirs["score"], abs=0.01)


def test_previews_agree(tmp_path) -> None:
    model = make_videomae(tmp_path / "model")
    videos = runs.make_classes(tmp_path / "videos", num_videos=4, num_frames=12)
    sheets = []
    for decoder in ("vidray", "pytorchvideo"):
        sheet = tmp_path / f"{decoder}.png"
        places = ["--source", str(videos), "--model", str(model), "--output", str(sheet)]
        assert cli(["preview", *places, "--no-augmented", "--decoder", decoder]) == 0
        sheets.append(np.asarray(Image.open(sheet).convert("RGB")).astype(int))
    assert np.abs(sheets[0] - sheets[1]).mean() < RESIZING
    assert sheets[0].std() > 10 * RESIZING, "there is something to see"


def test_too_little_memory_is_called_so_and_the_next_video_decodes() -> None:
    """60 frames of 640 x 480 are 53 MiB, and four times that as float32."""
    large = make_video(num_frames=60, width=640, height=480)
    one = dataclasses.replace(THEIRS, num_clips=1, span="full")
    with Sandbox(view=one, limits=Limits(decode_memory_bytes=150 * 1024**2)) as sandbox:
        with pytest.raises(VideoError) as raised:
            sandbox.decode(large)
        assert raised.value.status is Status.OUT_OF_MEMORY
        sandbox.decode(make_video(num_frames=9))


def test_frames_of_two_sizes_in_one_clip_are_refused_and_not_called_a_lack_of_memory(sandbox: Sandbox) -> None:
    with pytest.raises(VideoError, match=r"PyTorchVideo: .*equal size") as raised:
        sandbox.decode(resized_midway())
    assert raised.value.status is Status.UNSUPPORTED


@pytest.mark.parametrize("command", ["train", "score", "preview"])
def test_a_stream_that_it_does_not_take_is_refused(command: str, tmp_path, capsys) -> None:
    model = make_videomae(tmp_path / "model")
    video = runs.make_classes(tmp_path / "videos", num_videos=2, num_frames=8)
    places = ["--source", str(video), "--model", str(model), "--output", str(tmp_path / "out.png")]
    flags = ["--decoder", "pytorchvideo", "--video-stream", "default"]
    assert cli([command, *places, *flags]) == 2
    assert "--video-stream: got 'default', allowed is first with --decoder pytorch" in capsys.readouterr().err


def test_streams_are_refused(tmp_path, capsys) -> None:
    places = ["--source", "v", "--model", "m", "--output", str(tmp_path)]
    assert cli(["score", *places, "--streaming", "--decoder", "pytorchvideo"]) == 2
    assert "--decoder: got 'pytorchvideo', allowed is vidray with --streaming" in capsys.readouterr().err


# -- our decoder as a Video of PyTorchVideo --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", VIDEOS)
@pytest.mark.parametrize(
    ("start", "end"), [(0, 1), (0.3, 0.9), (Fraction(1, 3), Fraction(2, 3)), (0, 99), (50, 60), (0, math.inf)]
)
def test_a_clip_is_theirs_bit_for_bit(kind: str, start, end, tmp_path: Path) -> None:
    from pytorchvideo.data.encoded_video import EncodedVideo

    path = tmp_path / "video"
    path.write_bytes(make_video(**VIDEOS[kind]))
    theirs = EncodedVideo.from_path(str(path), decode_audio=False).get_clip(start, end)["video"]
    for opened in (path, str(path), path.open("rb"), io.BytesIO(path.read_bytes())):
        ours = VideoDecoder.from_path(opened).get_clip(start, end)
        assert ours["audio"] is None
        if theirs is None:
            assert ours["video"] is None
        else:
            assert torch.equal(ours["video"], theirs)
            assert ours["video"].dtype == torch.float32


@pytest.mark.parametrize("first", ["vidray.video.decoder", "pytorchvideo.data.video"])
def test_it_is_a_video_of_theirs_whichever_is_imported_first(first: str) -> None:
    script = (
        f"import io, {first}\n"
        "from vidray.video.decoder import VideoDecoder\n"
        "from pytorchvideo.data.video import Video\n"
        "from tests.support.videos import make_video\n"
        "print(isinstance(VideoDecoder(make_video(num_frames=3)), Video))"
    )
    assert printed_by(script) == "True\n"


def test_it_is_a_subclass_of_theirs_before_any_file_is_opened() -> None:
    script = (
        "from pytorchvideo.data.video import Video\n"
        "from vidray.video.decoder import VideoDecoder\n"
        "print(issubclass(VideoDecoder, Video))"
    )
    assert printed_by(script) == "True\n"


def test_decoding_alone_does_not_load_pytorchvideo() -> None:
    script = (
        "import sys\n"
        "from tests.support.videos import make_video\n"
        "from vidray.video.decoder import VideoDecoder\n"
        "VideoDecoder(make_video(num_frames=3))\n"
        "print('pytorchvideo' in sys.modules, 'torch' in sys.modules)"
    )
    assert printed_by(script) == "False False\n"


def printed_by(script: str) -> str:
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=runs.ROOT).stdout
