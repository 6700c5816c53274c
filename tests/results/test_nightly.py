"""Nights that run by themselves: what each leaves, with which code it ends, and what the next one makes up for."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.storage.test_lease import HOLD
from tests.support import runs
from tests.support.checkpoints import make_videomae
from tests.support.webhook_server import webhook_server
from vidray.cli.main import main
from vidray.errors import UsageError
from vidray.results.nightly import NightlyConfig, runs_without_page
from vidray.results.status import StatusConfig, read_status
from vidray.storage.store import Store


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_videomae(tmp_path_factory.mktemp("model"))


@pytest.fixture
def config(tmp_path, model) -> Path:
    """``nightly.yaml`` over two videos."""
    runs.make_bucket(tmp_path / "videos", num_videos=2)
    values = {"source": [str(tmp_path / "videos")], "model": str(model), "output": str(tmp_path / "out")}
    values |= {"views": "1x1", "span": "full", "runner": "local", "device": "cpu", "max_failure_rate": 1.0}
    path = tmp_path / "nightly.yaml"
    path.write_text(yaml.safe_dump(values | {"max_drift": 0.3}))
    return path


def night(config: Path, *more: str) -> int:
    return main(["nightly", "--config", str(config), *more])


def pages(output: Path) -> set[str]:
    """Ids of the runs with a page."""
    return {path.stem for path in (output / "_reports").glob("*.html")}


def ended(output: Path) -> set[str]:
    return {path.parent.name for name in ("_SUCCESS", "_FAILED") for path in runs.markers(output, name)}


def test_nights_one_after_the_other_each_with_a_verdict_and_each_run_with_a_page(config, tmp_path, capsys):
    output = tmp_path / "out"
    with webhook_server() as hook:
        assert night(config, "--notify", hook.url) == 0
        verdict = json.loads(capsys.readouterr().out.splitlines()[-1])
        (run,) = ended(output)
        assert verdict["report"] == str(output / "_reports" / f"{run}.html")
        assert "Scores of" in Path(verdict["report"]).read_text()
        assert (output / "_runs" / run / "profile.parquet").exists()
        assert hook.bodies[0]["facts"]["report"] == verdict["report"]
        assert verdict["report"] in hook.bodies[0]["text"]

        assert night(config, "--notify", hook.url) == 0, "a quiet night"
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["num_done"] == 2
        assert len(hook.bodies) == 2
    assert pages(output) == ended(output) == {run}
    runs.make_bucket(tmp_path / "videos" / "more", num_videos=1)
    assert night(config) == 0
    assert pages(output) == ended(output)
    assert len(pages(output)) == 2
    assert len(list((output / "_verdicts").iterdir())) == 3, "a night leaves one verdict"
    assert read_status(StatusConfig(output=str(output), max_age="1h")).exit_code == 0


def test_a_night_whose_videos_are_broken_ends_with_code_4_also_when_it_is_tried_again(config, tmp_path, capsys):
    """And with 3 where that is not allowed: it comes first."""
    output = tmp_path / "out"
    runs.make_bucket(tmp_path / "videos", num_videos=12)
    assert night(config) == 0
    (tmp_path / "videos" / "camera-2").mkdir()
    for number in range(12):
        (tmp_path / "videos" / "camera-2" / f"{number}.mp4").write_bytes(b"no video")
    assert night(config) == 4
    out, err = capsys.readouterr()
    verdict = json.loads(out.splitlines()[-1])
    assert (verdict["outcome"], verdict["exit_code"]) == ("too_much_changed", 4)
    assert "status by 1.00, where 0.3 is allowed (--max-drift)" in verdict["message"]
    assert f"vidray: {verdict['message']}" in err.splitlines()
    assert Path(verdict["report"]).exists()
    assert main(["status", "--output", str(output)]) == 4
    assert night(config, "--no-frames") == 4, "there is nothing new, and the last run is what it was"
    assert night(config, "--max-failure-rate", "0.1") == 3
    assert len(pages(output)) == 2


def test_a_night_that_was_killed_between_scoring_and_its_page_is_made_up_for(config, tmp_path):
    output = tmp_path / "out"
    process = runs.start([sys.executable, str(runs.ROOT / "jobs" / "nightly.py"), "--config", str(config)])
    runs.wait_until(lambda: ended(output) != set(), what="the end of scoring")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert pages(output) == set()
    assert not (output / "_verdicts").exists()
    text = runs.run([sys.executable, str(runs.ROOT / "jobs" / "nightly.py"), "--config", str(config)])
    assert pages(output) == ended(output)
    assert json.loads(text.splitlines()[-1])["report"]


def test_a_night_that_is_stopped_while_it_scores_says_so_and_goes_on(config, tmp_path):
    uris, output = runs.make_bucket(tmp_path / "videos", num_videos=60), tmp_path / "out"
    command = [sys.executable, str(runs.ROOT / "jobs" / "nightly.py"), "--config", str(config)]
    process = runs.start([*command, "--rows-per-part", "4"])
    runs.wait_until(lambda: runs.parts(output) != [], what="a part")
    os.kill(process.pid, signal.SIGTERM)
    text = runs.finish(process, code=143)
    assert any('"exit_code": 143' in line for line in text.splitlines())
    assert read_status(StatusConfig(output=str(output))).exit_code == 143
    runs.run(command)
    runs.assert_each_once(output, uris)
    assert pages(output) == ended(output)


def test_a_night_beside_another_ends_with_code_5_and_touches_nothing(config, tmp_path, capsys):
    holder = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=runs.ROOT) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert night(config) == 5
        other.stdin.close()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["outcome"] == "output_in_use"
    assert not (tmp_path / "out" / "_reports").exists()


def test_a_damaged_summary_ends_the_night_with_one_line_and_a_verdict(config, tmp_path, capsys):
    assert night(config) == 0
    (path,) = (tmp_path / "out" / "_runs").glob("*/summary.json")
    path.write_bytes(b"torn")
    capsys.readouterr()
    assert night(config) == 1
    out, err = capsys.readouterr()
    assert str(path) in err.splitlines()[-1]
    assert json.loads(out.splitlines()[-1])["exit_code"] == 1


def test_pages_are_owed_since_the_last_one_and_of_an_output_without_pages_the_last(tmp_path):
    old = shutil.copytree(Path(__file__).parents[1] / "data" / "output-0.1.0", tmp_path / "old")
    store = Store(str(old))
    first, last = sorted(path.name for path in (old / "_runs").iterdir())
    assert runs_without_page(store) == [last]
    store.create(f"_reports/{first}.html", b"")
    assert runs_without_page(store) == [last]
    store.create(f"_reports/{last}.html", b"")
    assert runs_without_page(store) == []
    assert runs_without_page(Store(str(tmp_path / "empty"))) == []


def test_it_says_what_it_would_do_and_takes_the_flags_of_score(config, tmp_path, capsys):
    assert night(config, "--dry-run") == 0
    assert "would score 2 videos" in capsys.readouterr().out
    assert not (tmp_path / "out" / "_verdicts").exists()
    with pytest.raises(UsageError, match="--max-drift: got 2"):
        NightlyConfig(source=("v",), model="m", output="o", max_drift=2)


def test_a_night_on_a_bucket(config, s3_bucket):
    output = f"{s3_bucket}/scores"
    assert night(config, "--output", output) == 0
    store = Store(output)
    assert len(store.list("_reports")) == len(store.list("_verdicts")) == 1
    assert main(["status", "--output", output, "--max-age", "26h"]) == 0
