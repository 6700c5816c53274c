"""One video is shown as it is, and as a model sees it."""

from __future__ import annotations

import io
import os
import pty
import shlex
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vidray
from tests.results.test_report import row, write_run
from tests.support.checkpoints import make_videomae
from tests.support.runs import ROOT
from tests.support.videos import frame_numbers, make_video
from vidray.cli.main import main as cli
from vidray.results.show import ShowConfig, look_at
from vidray.storage.store import Store


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_videomae(tmp_path_factory.mktemp("model"), initializer_range=0.5)


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> str:
    """Four seconds, whose frames carry their numbers."""
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    path.write_bytes(make_video(num_frames=100, fps=25, width=96, height=96))
    return str(path)


def show(*arguments: str) -> int:
    return cli(["show", *arguments])


def test_without_a_model_it_tells_what_decoding_finds_out(video, capsys):
    assert show(video) == 0
    text = capsys.readouterr().out
    assert text.startswith("clip.mp4\n4 s · 96 × 96 · 25 fps · h264 · ")
    assert "frames at 0 s, 0.56 s, 1.12 s, 1.68 s, 2.24 s, 2.8 s, 3.36 s, 3.96 s" in text
    assert "\x1b" not in text
    assert shlex.split(text.splitlines()[-1])[:4] == ["next:", "vidray", "show", video]


@pytest.mark.parametrize("fps", [Fraction(25), Fraction(30000, 1001), Fraction(12)])
@pytest.mark.parametrize("views", [None, "1x1", "3x1"])
def test_the_times_are_those_of_the_frames(model, tmp_path, fps, views):
    """The numbers of the frames are read off their pixels."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(make_video(num_frames=150, fps=fps, width=96, height=96))
    shown = look_at(ShowConfig(video=str(path), model=views and str(model), views=views))
    assert len(shown.clips) == int((views or "1")[0])
    for clip in shown.clips:
        assert clip.times == pytest.approx([float(number / fps) for number in frame_numbers(clip.frames)])


def test_with_a_model_it_shows_the_views_their_labels_and_the_answer(model, video, capsys):
    assert show(video, "--model", str(model), "--views", "2x3", "--top-k", "2") == 0
    text = capsys.readouterr().out
    with vidray.load(model, views="2x3", top_k=2) as classifier:
        look = classifier.look(video)
        assert classifier(video) == look.answer
    for answer in look.answer:
        assert any(line.split()[:2] == [answer["label"], f"{answer['score']:.2f}"] for line in text.splitlines())
    assert text.count("clip 1 of 2 · crop ") == text.count("clip 2 of 2 · crop ") == 3
    first = look.view_answers[0][0]
    assert f"clip 1 of 2 · crop 1 of 3 · 0 s to 1.07 s · {first['label']} {first['score']:.2f}" in text


def test_what_each_view_says_is_what_a_video_of_that_view_alone_would_get(model, video):
    with vidray.load(model, views="2x1") as both, vidray.load(model, views="1x1") as one:
        look = both.look(video)
        alone = one._predictor.predict([view[None] for view in look.views])
        assert [[entry["score"] for entry in answer] for answer in look.view_answers] == [
            pytest.approx([score for _, score in scores.top_k]) for scores in alone
        ]
        mean = np.mean([{e["label"]: e["score"] for e in a}[look.answer[0]["label"]] for a in look.view_answers])
        assert look.answer[0]["score"] == pytest.approx(mean, rel=1e-5)


def test_a_picture_replaces_one_that_is_there(model, video, tmp_path, capsys):
    path = tmp_path / "strip.png"
    path.write_bytes(b"an older one")
    assert show(video, "--model", str(model), "--views", "1x1", "--to", str(path)) == 0
    assert f"written to {path}" in capsys.readouterr().out
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width > 8 * 144


def test_videos_outputs_and_pictures_may_lie_in_a_bucket(s3_bucket, video, capsys):
    Store(s3_bucket).create("videos/clip.mp4", Path(video).read_bytes())
    uri = f"{s3_bucket}/videos/clip.mp4"
    write_run(Store(f"{s3_bucket}/scores"), "r1", [row(uri, etag=None, label="run")])
    assert show(uri, "--output", f"{s3_bucket}/scores", "--to", f"{s3_bucket}/strip.png") == 0
    Image.open(io.BytesIO(Store(s3_bucket).read("strip.png"))).verify()
    assert show(uri, "--output", f"{s3_bucket}/scores") == 0
    assert "run 0.90 " in capsys.readouterr().out


def test_an_output_adds_what_it_holds_of_the_video(video, tmp_path, capsys, monkeypatch):
    store = Store(str(tmp_path / "scores"))
    windows = [
        {"start_seconds": float(n), "end_seconds": n + 1.0, "label": "jump", "score": 0.75, "top_k": None}
        for n in range(20)
    ]
    write_run(store, "r1", [row(video, etag=None, label="run", score=0.6, result_key="k")])
    write_run(
        store,
        "r2",
        [row(video, etag=None, label="jump", segments=windows, second=9, result_key="m")],
        key="other",
        day=2,
    )
    monkeypatch.chdir(Path(video).parent)
    assert show("clip.mp4", "--output", store.uri) == 0
    text = capsys.readouterr().out
    assert "in the output, by a model, 2026-11-01 00:00" in text
    assert "jump 0.90 █" in text
    assert "0 s to 1 s: jump 0.75" in text
    assert "… 8 more windows" in text
    assert "the last of its 2 rows there" in text


def test_of_a_row_of_a_span_the_span_is_shown(video, tmp_path):
    store = Store(str(tmp_path / "scores"))
    write_run(store, "r1", [row(video, etag=None, start_seconds=1.0, end_seconds=2.0)])
    (clip,) = look_at(ShowConfig(video=video, output=store.uri)).clips
    assert frame_numbers(clip.frames) == [round(25 * time) for time in clip.times]
    assert (clip.times[0], clip.times[-1]) == (1.0, 1.96)


@pytest.mark.parametrize("etag", ["another", None])
def test_a_row_is_shown_without_frames_where_its_version_is_gone(video, tmp_path, etag, capsys):
    uri = video if etag else str(tmp_path / "gone.mp4")
    store = Store(str(tmp_path / "scores"))
    write_run(store, "r1", [row(uri, etag=etag, status="corrupt")])
    assert show(uri, "--output", store.uri) == 0
    text = capsys.readouterr().out
    assert ("changed: " if etag else "not_found: ") in text
    assert "\ncorrupt: <script>" in text
    assert "\u202e" not in text


def terminal(video: str, **environment: str) -> str:
    """What a terminal of 70 columns gets."""
    main, side = pty.openpty()
    command = [sys.executable, "-m", "vidray", "show", video]
    clean = {name: value for name, value in os.environ.items() if name not in ("COLORTERM", "NO_COLOR")}
    env = {**clean, "COLUMNS": "70", "TERM": "xterm", **environment}
    done = subprocess.Popen(command, stdout=side, stderr=side, cwd=ROOT, env=env)
    os.close(side)
    data = b""
    while True:
        try:
            data += (more := os.read(main, 100_000))
        except OSError:  # Linux says so at the end of a terminal
            break
        if not more:
            break
    os.close(main)
    assert done.wait() == 0
    return data.decode()


def test_a_terminal_with_colours_shows_the_frames(video):
    text = terminal(video, COLORTERM="truecolor")
    assert text.count("▀") == 4 * 16 * 8  # four frames of 16 by 8 characters: 70 hold no more
    assert "\x1b[38;2;" in text
    assert "--to FILE.png" not in text


@pytest.mark.parametrize("environment", [{}, {"COLORTERM": "truecolor", "NO_COLOR": "1"}])
def test_a_terminal_without_shows_times_and_says_how_to_get_a_picture(video, environment):
    text = terminal(video, **environment)
    assert "▀" not in text
    assert "frames at 0 s" in text
    assert "--to FILE.png draws the frames" in text


def test_what_cannot_be_shown_is_one_line(video, model, tmp_path, capsys):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"\0" * 100)
    store = Store(str(tmp_path / "scores"))
    write_run(store, "r1", [row("/v/a.mp4")])
    for arguments, code, message in (
        (["/no.mp4"], 2, "got '/no.mp4', allowed is a video that is there"),
        ([str(tmp_path)], 1, "is unsupported: not a regular file"),
        ([str(broken)], 1, "broken.mp4 is corrupt: "),
        ([video, "--output", store.uri], 2, f"which has no row of {video}; vidray query lists those it has"),
        ([video, "--output", str(tmp_path / "none")], 1, "holds no rows of vidray score"),
        ([video, "--model", str(tmp_path / "none")], 2, "none"),
        ([video, "--to", "strip.jpg"], 2, "--to: got 'strip.jpg', allowed is a name that ends in .png"),
        ([video, "--model", str(model), "--views", "2x2"], 2, "--views: got '2x2', allowed is like 5x3 or 1x1"),
        ([video, "--views", "2x1"], 2, "--views: got '2x1', allowed is nothing without --model"),
        ([video, "--top-k", "0"], 2, "--top-k: got 0, allowed is at least 1"),
    ):
        assert show(*arguments) == code, arguments
        text = capsys.readouterr().err
        assert message in text
        assert len(text.splitlines()) == 1
