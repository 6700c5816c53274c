"""After vidray forget nothing in the output tells of the video, in any spelling, and everything else is as it was."""

from __future__ import annotations

import hashlib
import html
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import vidray
from tests.support import runs
from tests.support.checkpoints import make_videomae
from tests.support.stores import filesystem
from vidray.cli.main import main
from vidray.results.compact import CompactConfig, compact
from vidray.results.comparison import compare_runs, write_profile
from vidray.results.forget import Cleaning, ForgetConfig, forget
from vidray.results.naming import Naming
from vidray.results.report import ReportConfig, report
from vidray.results.verify import VerifyConfig, verify
from vidray.scoring import history
from vidray.scoring.config import ScoreConfig
from vidray.scoring.job import ScoreJob
from vidray.storage.lease import Lease
from vidray.storage.store import Store

STRANGE, BROKEN, AGAIN = "a & b <ü>.mp4", "broken.mp4", "0001.mp4"
"""A name that every format spells in its own way; one that verdicts give as an example; one with two versions."""


def config(folder: Path, output: object, **more) -> ScoreConfig:
    values = {"views": "1x1", "span": "full", "rows_per_part": 3, "max_failure_rate": 1.0, "runner": "local"}
    places = {"source": (str(folder / "videos"),), "model": str(folder / "model"), "output": str(output)}
    return ScoreConfig(**values | places | more)


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Path:
    """``out``: three nights and another model's views; merged copies, merged keys, a profile, a report."""
    folder = tmp_path_factory.mktemp("forget")
    make_videomae(folder / "model")
    videos, output = folder / "videos", folder / "out"
    runs.make_bucket(videos, num_videos=6)
    shutil.copy(videos / "0000.mp4", videos / STRANGE)
    (videos / BROKEN).write_bytes(b"no video")
    ScoreJob(config(folder, output)).run()
    shutil.copy(videos / "0000.mp4", videos / AGAIN)
    runs.make_bucket(videos / "more", num_videos=4)
    ScoreJob(config(folder, output, retry_failed=True)).run()
    ScoreJob(config(folder, output, views="2x1")).run()
    ScoreJob(config(folder, output)).run()  # nothing new: its verdict has an example of what was given up
    compact(CompactConfig(output=str(output)))
    history.merge_keys(Store(str(output)), min_runs=1)
    write_profile(compare_runs(str(output)))
    (output / "_reports").mkdir()
    report(ReportConfig(output=str(output), to=str(output / "_reports" / "last.html"), frames=False))
    return folder


@pytest.fixture
def output(scored, tmp_path) -> Path:
    return Path(shutil.copytree(scored / "out", tmp_path / "out"))


def uri_of(scored: Path, name: str) -> str:
    return str(scored / "videos" / name)


def texts(folder: Path) -> Iterator[tuple[str, str]]:
    """What every object of a folder says, decoded: (path, text)."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield str(path), path.name
            yield str(path), path.read_bytes().decode("utf-8", "replace")
            if path.suffix == ".parquet":
                yield from ((str(path), text) for text in parquet_texts(path))


def parquet_texts(path: Path) -> Iterator[str]:
    metadata = pq.read_metadata(path)
    yield str(metadata.metadata)
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            yield str(metadata.row_group(group).column(column).statistics)
    for row in pq.read_table(path, partitioning=None).to_pylist():
        yield str({name: value.hex() if isinstance(value, bytes) else value for name, value in row.items()})


def keys_of(scored: Path, *names: str) -> set[str]:
    """Hex digests of the keys of all rows of videos, computed as docs/output.md says."""
    mine = [row for row in runs.read_rows(scored / "out") if row["uri"] in {uri_of(scored, name) for name in names}]
    assert mine
    return {hashlib.md5("\x1f".join([row["uri"], row["etag"], row["result_key"]]).encode()).hexdigest() for row in mine}


def found(folder: Path, scored: Path, *names: str) -> list[str]:
    """Objects that tell of the videos."""
    spellings = keys_of(scored, *names)
    for name in names:
        uri = uri_of(scored, name)
        spellings |= {uri, quote(uri), quote(uri, safe=""), html.escape(uri)}
    return sorted({path for path, text in texts(folder) if any(spelling in text for spelling in spellings)})


def others(folder: Path, scored: Path, *names: str) -> list[dict]:
    gone = {uri_of(scored, name) for name in names}
    return [row for row in runs.read_rows(folder) if row["uri"] not in gone]


def command(output: Path, scored: Path, *names: str) -> list[str]:
    flags = [flag for name in names for flag in ("--uri", uri_of(scored, name))]
    return ["forget", "--output", str(output), *flags]


def test_the_search_finds_the_videos_where_they_are(scored):
    """Else the other tests would prove nothing."""
    there = found(scored / "out", scored, STRANGE, BROKEN, AGAIN)
    folders = {Path(path).relative_to(scored / "out").parts[0] for path in there}
    assert folders == {"predictions", "_runs", "_keys", "_merged", "_reports", "_verdicts"}
    assert {"plan.parquet", "keys.parquet"} <= {Path(path).name for path in there}


def test_nothing_in_the_output_tells_of_the_videos_and_all_other_rows_stay(scored, output, capsys):
    names = (STRANGE, BROKEN, AGAIN)
    before, current = others(output, scored, *names), vidray.read(str(output)).to_pylist()
    profiled = sorted(path.relative_to(output) for path in output.rglob("profile.parquet"))
    assert main(command(output, scored, *names)) == 0
    text = capsys.readouterr().out
    assert found(output, scored, *names) == []
    assert runs.read_rows(output) == before
    gone = {uri_of(scored, name) for name in names}
    assert vidray.read(str(output)).to_pylist() == [row for row in current if row["uri"] not in gone]
    assert str(verify(VerifyConfig(output=str(output)))).endswith("nothing is wrong")
    assert sorted(path.relative_to(output) for path in output.rglob("profile.parquet")) == profiled
    assert "scored again by the next run" in text
    assert "earlier versions" in text
    assert main(command(output, scored, *names)) == 0
    again = capsys.readouterr().out
    assert "0 rows forgotten" in again
    assert "nothing of 3 of these videos" in again


def test_what_is_still_listed_is_scored_again_and_nothing_else(scored, output):
    main(command(output, scored, STRANGE, AGAIN))
    num_rows = len(runs.read_rows(output))
    (summary,) = ScoreJob(config(scored, output)).run()
    assert summary["num_scored"] == 2
    rows = runs.read_rows(output)
    assert len(rows) == num_rows + 2
    new = [row["uri"] for row in rows if row["run_id"] == summary["run_id"]]
    assert new == sorted([uri_of(scored, STRANGE), uri_of(scored, AGAIN)])


def test_a_dry_run_names_what_a_real_one_does_and_writes_nothing(scored, output):
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    asked = {"output": str(output), "uri": (uri_of(scored, STRANGE), uri_of(scored, "not there.mp4"))}
    planned = forget(ForgetConfig(**asked, dry_run=True))
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    done = forget(ForgetConfig(**asked))
    assert planned == done
    assert (planned.missing, planned.num_rows) == ([uri_of(scored, "not there.mp4")], 2)
    after = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    changed = {str(path.relative_to(output)) for path in before if path in after and after[path] != before[path]}
    assert {path for path in changed if not path.endswith("profile.parquet")} == set(planned.replaced)


class CutOffError(Exception):
    pass


def test_wherever_it_is_cut_off_no_video_has_two_rows_and_the_same_command_ends_it(scored, tmp_path):
    names = (STRANGE, BROKEN, AGAIN)
    uris = tuple(uri_of(scored, name) for name in names)
    expected = others(scored / "out", scored, *names)
    is_cut, num_writes = True, 0
    while is_cut:
        output = Path(shutil.copytree(scored / "out", tmp_path / "out"))
        left = iter(range(num_writes))

        def before_write(left=left) -> None:
            if next(left, None) is None:
                raise CutOffError

        try:
            Cleaning(Store(str(output)), Naming(uris), before_write).run()
            is_cut = False
        except CutOffError:
            assert "ok rows" not in str(verify(VerifyConfig(output=str(output))))
            forget(ForgetConfig(output=str(output), uri=uris))
        assert found(output, scored, *names) == []
        assert runs.read_rows(output) == expected
        assert str(verify(VerifyConfig(output=str(output)))).endswith("nothing is wrong")
        shutil.rmtree(output)
        num_writes += 1
    assert num_writes > 15


def test_a_killed_command_is_finished_by_the_same(scored, output):
    part = runs.parts(output)[0]
    names = [path.name for path in (scored / "videos").glob("*.mp4")]
    before = part.stat().st_ino
    process = subprocess.Popen([sys.executable, "-m", "vidray", *command(output, scored, *names)], cwd=runs.ROOT)
    try:
        runs.wait_until(lambda: part.stat().st_ino != before or process.poll() is not None, what="the first part")
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert main(command(output, scored, *names)) == 0
    assert found(output, scored, *names) == []
    assert {Path(row["uri"]).parent.name for row in runs.read_rows(output)} == {"more"}


def test_an_unfinished_run_goes_on_without_them(scored, tmp_path):
    """Of 8 videos in parts of three only the first part is there; all videos of the second are forgotten."""
    output = tmp_path / "out"
    (summary,) = ScoreJob(config(scored, output, limit=8)).run()
    run = output / "_runs" / summary["run_id"]
    planned = pq.read_table(run / "plan.parquet")["uri"].to_pylist()
    for name in ("_SUCCESS", "keys.parquet", "summary.json"):
        (run / name).unlink()
    for part in runs.parts(output)[1:]:
        part.unlink()
    gone = [planned[0], *planned[3:6], planned[7]]
    forget(ForgetConfig(output=str(output), uri=tuple(gone)))
    assert [pq.read_metadata(part).num_rows for part in runs.parts(output)] == [2, 0]
    (resumed,) = ScoreJob(config(scored, output, limit=8, run_id=summary["run_id"])).run()
    assert (resumed["run_id"], resumed["num_planned"]) == (summary["run_id"], 3)
    runs.assert_each_once(output, sorted(set(planned) - set(gone)))
    assert str(verify(VerifyConfig(output=str(output)))) == "1 runs, 3 parts, 3 rows: nothing is wrong"


def test_a_manifest_names_them_and_a_bucket_is_an_output_too(scored, s3_bucket, tmp_path):
    bucket = f"{s3_bucket}/scores"
    fs, path = filesystem(bucket)
    fs.put(f"{scored / 'out'}/", f"{path}/", recursive=True)
    lines = ["uri,why", *(f'"{uri_of(scored, name)}",asked' for name in (STRANGE, BROKEN))]
    (tmp_path / "erase.csv").write_text("\n".join(lines))
    assert main(["forget", "--output", bucket, "--manifest", str(tmp_path / "erase.csv")]) == 0
    fs.get(f"{path}/", f"{tmp_path / 'copy'}/", recursive=True)
    assert found(tmp_path / "copy", scored, STRANGE, BROKEN) == []
    assert runs.read_rows(tmp_path / "copy") == others(scored / "out", scored, STRANGE, BROKEN)


def test_while_another_run_works_on_the_output_nothing_is_changed(scored, output, capsys):
    before = runs.read_rows(output)
    with Lease(Store(str(output)), ttl_seconds=3).held():
        assert main(command(output, scored, STRANGE)) == 5
    assert "another run is working on" in capsys.readouterr().err
    assert runs.read_rows(output) == before


def test_bad_input_is_one_line(scored, output, tmp_path, capsys):
    assert main(["forget", "--output", str(output)]) == 2
    assert main(["forget", "--output", str(tmp_path / "nothing"), "--uri", "/a.mp4"]) == 1
    (output / "_runs" / sorted(os.listdir(output / "_runs"))[0] / "plan.parquet").write_bytes(b"PAR1")
    assert main(command(output, scored, STRANGE)) == 1
    errors = capsys.readouterr().err.splitlines()
    assert [line.startswith("vidray: ") for line in errors] == [True] * 3
    assert "cannot be read" in errors[2]


def test_an_output_of_version_0_1_0_can_be_told_to_forget(tmp_path):
    output = tmp_path / "out"
    shutil.copytree(runs.ROOT / "tests" / "data" / "output-0.1.0", output)
    done = forget(ForgetConfig(output=str(output), uri=("/data/videos/0001.mp4",)))
    assert done.num_rows == 2
    assert not any("0001.mp4" in text for _, text in texts(output))
    assert str(verify(VerifyConfig(output=str(output)))) == "2 runs, 3 parts, 4 rows: nothing is wrong"


def test_spellings_in_texts() -> None:
    naming = Naming(["s3://b/a b.mp4"])
    values = {"source": ["s3://b/a b.mp4", "s3://b/"], "message": "such as s3://b/a%20b.mp4: x", "n": 3}
    assert naming.without(values) == {"source": ["s3://b/"], "message": "such as (forgotten): x", "n": 3}
    assert naming.are_in(pa.chunked_array([["s3://b/a b.mp4", "s3://b/a b.mp4.mp4"]])).to_pylist() == [True, False]
