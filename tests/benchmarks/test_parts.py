"""The benchmarks of parts: decoding, networks, streaming."""

from __future__ import annotations

import re
import sys

import pytest

from benchmarks import decode, models, ranges, segments, streaming
from tests.support import runs

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("source", ["files", "generated"])
def test_decoding_is_timed_beside_pytorchvideo(source, clips, capsys):
    given = [str(clips)] if source == "files" else ["--generated-frames", "40"]
    decode.main([*given, "--num-frames", "4", "--size", "32", "--repeats", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 2 + 1, "a title, two clips, and all"
    assert all(float(cell) > 0 for line in lines[1:] for cell in line.split()[-4:])


@pytest.mark.parametrize("name", ["videomae", "x3d_m", "movinet-a0"])
def test_a_network_is_timed_eager_and_as_the_predictor_runs_it(name, capsys):
    models.main(["--tiny", "--families", name, "--seconds", "0", "--calls", "1", "--threads", "1"])
    titles, _, cells = (line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:])
    row = {title.strip(): cell.strip() for title, cell in zip(titles, cells, strict=True)}
    assert row["model"] == name
    assert float(row["Predictor fp32 / eager"]) > 0


@pytest.mark.parametrize("name", models.NAMES)
def test_every_network_has_a_tiny_one_of_its_family(name):
    case = models.tiny_case_of(name)
    assert case.family == models.case_of(name).family
    assert case.view.size <= 36


@pytest.mark.parametrize(
    "job", [*(pytest.param(name, marks=pytest.mark.long) for name in ("clips", "videos")), "timeline"]
)
def test_videos_are_streamed(job, capfd):
    streaming.main(
        ["--jobs", job, "--num-videos", "1", "--minutes", "0.1", "--clip-seconds", "1", "--alone-seconds", "0.2"]
    )
    lines = capfd.readouterr().out.splitlines()
    assert float(re.search(r"^alone ([\d.]+) frames/s$", "\n".join(lines), re.MULTILINE)[1]) > 0
    num_videos, seconds = re.search(r": (\d+) videos, (\d+) s of video", lines[-1]).groups()
    assert (int(num_videos), int(seconds)) == ((4, 4) if job == "clips" else (1, 6))


@pytest.mark.long
def test_windows_are_timed_beside_whole_videos(clips, capsys):
    segments.main(["--videos", str(clips), "--num-videos", "4", "--turns", "1"])
    assert float(re.search(r"segments / whole: ([\d.]+) \(median of 1\)", capsys.readouterr().out)[1]) > 0


def test_parts_of_a_long_video_are_timed_beside_the_whole(capsys, monkeypatch):
    monkeypatch.setattr(ranges, "ABOVE_BYTES", {"whole": None, "parts": 1 << 20})
    small = ["--megabytes", "50", "--gop-size", "25", "--num-short", "2"]
    ranges.main([*small, "--turns", "1", "--megabytes-per-second", "1000"])
    lines = capsys.readouterr().out.splitlines()
    names = ["long, whole", "long, parts", "long", "short, whole", "short, parts", "short"]
    assert [line.split(":")[0] for line in lines] == names
    assert float(re.search(r"([\d.]+) times fewer bytes", lines[2])[1]) > 1
    assert float(re.search(r"([\d.]+) times fewer bytes", lines[5])[1]) == 1


def test_clips_in_tars_are_timed_beside_objects():
    small = ["--num-clips", "12", "--num-shards", "2", "--turns", "1", "--delay", "0.01"]
    out = runs.run([sys.executable, str(runs.ROOT / "benchmarks" / "tars.py"), *small])
    assert float(re.search(r"^request: objects / tars ([\d.]+)$", out, re.MULTILINE)[1]) > 0
