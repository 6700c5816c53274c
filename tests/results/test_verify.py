"""Whatever is done to an output by hand is found, and an output that nobody touched is found to be good."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import runs
from tests.support.checkpoints import make_videomae
from vidray.cli import main as cli
from vidray.scoring.config import ScoreConfig
from vidray.scoring.job import ScoreJob


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Path:
    """Two nights in parts of three rows, one video of which is no video."""
    folder = tmp_path_factory.mktemp("scored")
    model, videos = make_videomae(folder / "model"), folder / "videos"
    values = {"views": "1x1", "span": "full", "rows_per_part": 3, "max_failure_rate": 0.5, "runner": "local"}
    config = ScoreConfig(source=(str(videos),), model=str(model), output=str(folder / "out"), **values)
    runs.make_bucket(videos, num_videos=6)
    (videos / "bad.mp4").write_bytes(b"no video")
    ScoreJob(config).run()
    runs.make_bucket(videos / "more", num_videos=4)
    ScoreJob(config).run()
    return folder / "out"


@pytest.fixture
def output(scored, tmp_path) -> Path:
    return Path(shutil.copytree(scored, tmp_path / "out"))


def verified(output: Path, capsys) -> tuple[int, str]:
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    code = cli.main(["verify", "--output", str(output)])
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before, "it only reads"
    return code, capsys.readouterr().out


def test_an_output_that_nobody_touched_is_good(output, capsys):
    assert verified(output, capsys) == (0, "2 runs, 5 parts, 11 rows: nothing is wrong\n")


def rewritten(path: Path, change) -> None:
    table = change(pq.read_table(path, partitioning=None))
    pq.write_table(table, path)


def lose(output: Path) -> None:
    runs.parts(output)[1].unlink()


def truncate(output: Path) -> None:
    part = runs.parts(output)[0]
    part.write_bytes(part.read_bytes()[:-20])


def swap_videos(output: Path) -> None:
    rewritten(runs.parts(output)[0], lambda table: table.take([1, 0, 2]))


def lose_a_row(output: Path) -> None:
    rewritten(runs.parts(output)[0], lambda table: table.slice(1))


def double_a_part(output: Path) -> None:
    parts = runs.parts(output)
    first_run, second_run = sorted({part.parent for part in parts})
    shutil.copy(first_run / "part-00000.parquet", second_run / "part-00000.parquet")


def change_a_type(output: Path) -> None:
    rewritten(
        runs.parts(output)[0],
        lambda table: table.set_column(
            table.schema.get_field_index("score"), "score", table["score"].cast(pa.float64())
        ),
    )


def change_keys(output: Path) -> None:
    rewritten(runs.markers(output, "keys.parquet")[0], lambda table: table.slice(1))


def lose_a_plan(output: Path) -> None:
    runs.markers(output, "plan.parquet")[0].unlink()


def lose_a_run(output: Path) -> None:
    shutil.rmtree(runs.markers(output)[0].parent)


def add_a_part(output: Path) -> None:
    part = runs.parts(output)[0]
    shutil.copy(part, part.with_name("part-00077.parquet"))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lose, "part-00001.parquet is missing; the next run of vidray score does its rows again"),
        (truncate, "part-00000.parquet cannot be read"),
        (swap_videos, "holds other videos than rows 0 to 2 of the plan"),
        (lose_a_row, "holds other videos than rows 0 to 2 of the plan"),
        (double_a_part, "ok rows are of a version and a result key that another ok row has too"),
        (change_a_type, "has columns that are not as they should be: score"),
        (change_keys, "keys.parquet names other rows than the parts of its run hold"),
        (lose_a_plan, "plan.parquet is missing"),
        (lose_a_run, "has parts, but _runs/"),
        (add_a_part, "is no part of the plan, which has 3"),
    ],
)
def test_what_was_changed_by_hand_is_named(output, capsys, damage, expected):
    damage(output)
    code, text = verified(output, capsys)
    assert code == 1
    assert expected in text
    *_, counts, following = text.splitlines()
    assert "problems" in counts
    assert following.startswith("next: ")


def test_an_unfinished_run_is_not_wrong(output, capsys):
    marker = runs.markers(output)[-1]
    for name in ("_SUCCESS", "summary.json", "keys.parquet"):
        marker.with_name(name).unlink()
    runs.parts(output)[-1].unlink()
    code, text = verified(output, capsys)
    assert (code, text.splitlines()[-1]) == (0, "2 runs, 4 parts, 10 rows: nothing is wrong")


def test_a_folder_without_runs_is_said_to_be_one(tmp_path, capsys):
    assert cli.main(["verify", "--output", str(tmp_path)]) == 1
    assert "holds no run of vidray score" in capsys.readouterr().err
