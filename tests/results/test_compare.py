"""What changed is told in the terminal, to scripts and by the exit code, and a profile is left for months to come."""

from __future__ import annotations

import json
import shlex

import duckdb
import pyarrow as pa
import pytest

import vidray
from tests.results.test_report import row, write_run
from tests.support.checkpoints import make_videomae
from vidray.cli.demo import motion_video
from vidray.cli.main import main as cli
from vidray.cli.main import parse
from vidray.errors import RunError, UsageError
from vidray.results.comparison import compare_runs, write_profile
from vidray.results.profile import SCHEMA, read_profiles
from vidray.results.report import ReportConfig
from vidray.results.run_rows import before, ended_runs
from vidray.results.session import Session
from vidray.scoring.history import read_keys
from vidray.storage.store import Store


def rows(first, last, *, label="run", score=0.9, **more):
    return [row(f"/v/{number}.mp4", label=label, score=score, **more) for number in range(first, last)]


def make_output(place: str) -> str:
    """Four nights: three of one model, of which the third found other labels; the last of another model."""
    store = Store(place)
    write_run(store, "r1", rows(0, 200))
    write_run(store, "r2", [*rows(200, 399), *rows(399, 400, status="corrupt")], day=2)
    write_run(store, "r3", [*rows(400, 500), *rows(500, 600, label="jump", score=0.35)], day=3)
    write_run(store, "m1", [*rows(0, 150), *rows(150, 200, label="jump", score=0.8)], key="other", day=4)
    return store.uri


@pytest.fixture
def output(tmp_path) -> str:
    return make_output(str(tmp_path / "scores"))


@pytest.fixture(params=["disk", "bucket"])
def anywhere(request, tmp_path) -> str:
    """The same on a disk and in a bucket."""
    bucket = request.getfixturevalue("s3_bucket") if request.param == "bucket" else None
    return make_output(f"{bucket}/scores" if bucket else str(tmp_path / "scores"))


def compare(output: str, *arguments: str) -> int:
    return cli(["compare", "--output", output, *arguments])


def test_a_run_is_compared_with_the_one_before_it_and_what_moved_is_shown(anywhere, capsys):
    assert compare(anywhere, "r3") == 0
    text = capsys.readouterr().out
    assert "before  r2, planned 2026-11-02 00:00, by m\nnow     r3, planned 2026-11-03 00:00, by m\n" in text
    told = {line.split()[0]: line.split()[1:] for line in reversed(text.splitlines()) if "  " in line}
    assert told["label"] == ["0.56", "0.04", "199", "200", "changed"]
    assert told["jump"] == ["0", "0%", "100", "50%"]
    assert told["codec"] == ["0.00", "0.00", "200", "200", "about", "the", "same"]
    following = text.splitlines()[-1]
    config = parse(ReportConfig, shlex.split(following)[3:], prog="vidray report")
    assert (config.output, config.run, config.against) == (anywhere, "r3", "r2")


def test_with_another_result_key_the_videos_that_changed_their_label_are_shown(anywhere, capsys):
    """All nights of the other model count: r1, which scored videos 0 to 199, is not the last of them."""
    assert compare(anywhere) == 0
    text = capsys.readouterr().out
    assert "50 of 200 videos that both scored (25%) have another label" in text
    assert "run           jump           50  100%" in text
    assert "/v/150.mp4" in text


@pytest.fixture
def labelled(tmp_path) -> str:
    """Of videos 100 to 184, of which 140 to 179 are jumps and the model before said "run" to all; no model knows swims.
    The last is of no run."""
    labels = {number: "jump" if 140 <= number < 180 else "run" for number in range(101, 185)}
    labels |= {100: "swim", 9999: "run"}
    lines = [f"/v/{number}.mp4,{label}" for number, label in labels.items()]
    (tmp_path / "labels.csv").write_text("\n".join(["uri,label", *lines]))
    return str(tmp_path / "labels.csv")


def test_of_two_models_it_tells_how_often_each_is_right_where_that_is_known(output, labelled, capsys):
    """The model now says "jump" from 150 on: 30 jumps are found, 10 are still missed, and runs 180 to 184 are lost."""
    assert compare(output, "--labelled", labelled) == 0
    text = capsys.readouterr().out
    assert "of 85 videos with a known label 52% were right before and 81% are now: 30 mended, 5 broken" in text
    assert "; 1 with a label that neither model gave any video\n" in text
    rows = [line.split() for line in text[text.index("right label") :].splitlines()[2:]]
    assert rows[:3] == [["jump", "40", "0%", "75%"], ["run", "44", "100%", "89%"], ["swim", "1", "0%", "0%"]]
    assert compare(output, "--labelled", labelled, "--json") == 0
    found = json.loads(capsys.readouterr().out)["accuracy"]
    assert (found["num_known"], found["num_right_before"], found["num_right_after"]) == (85, 44, 69)


@pytest.mark.parametrize(
    ("runs", "source", "message"),
    [
        (["r1", "r2"], "labels.csv", "two models on the same videos, and run r1 is of the same model and views"),
        (["r1"], "labels.csv", "two models on the same videos, and there is no other run"),
        (["m1"], "nothing.csv", "nothing.csv"),
    ],
)
def test_labels_that_cannot_be_compared_with_are_one_line(output, labelled, runs, source, message, capsys):
    assert compare(output, *runs, "--labelled", labelled.replace("labels.csv", source)) == 2
    assert message in capsys.readouterr().err


def test_the_runs_may_be_named_the_earlier_one_first(output, capsys):
    assert compare(output, "r1", "r2") == 0
    text = capsys.readouterr().out
    assert text.startswith("before  r1")
    assert "nothing moved by 0.1 or more" in text


def summary(day, *, key="k", source=("s3://b/",), outcome="success"):
    return {"key": key, "day": day, "source": list(source), "outcome": outcome}


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([], None),
        ([summary(1), summary(2)], "r2"),
        ([summary(1), summary(2, outcome="too_many_failures")], "r1"),
        ([summary(1), summary(2, source=["s3://c/"])], "r1"),
        ([summary(1), summary(2, key="other")], "r1"),
        ([summary(1, source=["s3://c/"]), summary(2, key="other")], "r1"),
        ([summary(1, key="other"), summary(2, key="other", source=["s3://c/"])], "r1"),
    ],
)
def test_the_run_before_is_the_last_good_one_of_the_same_model_and_sources_if_there_is_one(tmp_path, others, expected):
    store = Store(str(tmp_path))
    for number, values in enumerate([*others, summary(9)], start=1):
        write_run(store, f"r{number}", rows(0, 1), **values)
    runs = ended_runs(store)
    found = before(runs, runs[-1])
    assert (found and found.run_id) == expected


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["r3", "--max-drift", "0.6"], 0, ""),
        (
            ["r3", "--max-drift", "0.5"],
            4,
            "run r3 changed too much since run r2: label by 0.56, where 0.5 is allowed (--max-drift); score by 0.56",
        ),
        (["r2", "--max-drift", "0"], 0, ""),  # one failure of 200 is no more than chance
        (["m1", "--max-flips", "0.25"], 0, ""),
        (
            ["m1", "--max-flips", "0.2", "--max-drift", "0"],
            4,
            "run m1 changed too much since run r3: the label of 50 of 200 videos (25%), where 20% is allowed",
        ),
    ],
)
def test_the_exit_code_tells_what_is_too_much_and_a_line_says_which(output, arguments, code, message, capsys):
    assert compare(output, *arguments) == code
    printed = capsys.readouterr()
    assert message in printed.err
    assert len(printed.err.splitlines()) == (1 if message else 0)
    assert printed.out.startswith("before  ")


def test_codecs_and_sizes_alone_are_no_drift(tmp_path):
    store = Store(str(tmp_path))
    write_run(store, "r1", rows(0, 200))
    write_run(store, "r2", rows(200, 400, codec="av1", size_bytes=10**9), day=2)
    found = compare_runs(store.uri)
    assert {one.name for one in found.changes if one.is_marked} == {"codec", "size"}
    assert found.exceeded(max_drift=0.0) is None


def test_json_says_the_same_in_one_line(output, capsys):
    assert compare(output, "r3", "--json", "--max-drift", "0.5") == 4
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert (found["run"]["run_id"], found["against"]["run_id"], found["flips"]) == ("r3", "r2", None)
    label = found["changes"][0]
    assert (label["name"], label["num_before"], label["num_after"], label["is_marked"]) == ("label", 199, 200, True)
    assert ["jump", 0, 100] in label["moved"]
    assert found["exceeded"].startswith("run r3 changed too much")
    assert compare(output, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["changes"], found["flips"]["share"], found["exceeded"]) == ([], 0.25, None)


def test_a_profile_is_kept_once_and_describes_the_run(anywhere):
    store = Store(anywhere)
    assert compare(anywhere, "r3") == 0
    data = store.read("_runs/r3/profile.parquet")
    assert compare(anywhere, "r3") == 0
    assert compare(anywhere, "r1", "r3") == 0
    assert store.read("_runs/r3/profile.parquet") == data
    profile = read_profiles(store)
    assert profile.schema == SCHEMA
    found = {(one["kind"], one["name"], one["value"], one["level"]): one for one in profile.to_pylist()}
    jump = found["share", "label", "jump", None]
    assert (jump["number"], jump["num_videos"], jump["run_id"], jump["against"]) == (0.5, 100, "r3", None)
    assert found["share", "score", "0.9 to 1.0", 0.9]["num_videos"] == 100
    assert found["quantile", "score", None, 0.25]["number"] == pytest.approx(0.35)
    assert found["quantile", "duration", None, 1.0]["number"] == 10
    moved = found["distance", "label", None, None]
    assert (round(moved["number"], 2), moved["num_videos"], moved["against"]) == (0.56, 200, "r2")


def test_a_profile_of_a_comparison_that_is_not_the_usual_one_is_not_kept(output):
    for arguments in (["r1", "r3"], ["r3", "--no-profile"]):
        assert compare(output, *arguments) == 0
        assert not Store(output).exists("_runs/r3/profile.parquet")
    assert not write_profile(compare_runs(output, "r3", "r1"))
    assert write_profile(compare_runs(output, "r3"))
    assert not write_profile(compare_runs(output, "r3"))


def test_profiles_of_all_nights_are_one_table_for_any_engine_and_for_query(output):
    for run in ("r1", "r2", "r3", "m1"):
        write_profile(compare_runs(output, run))
    sql = "SELECT run_id, number FROM {} WHERE kind = 'share' AND name = 'label' AND value = 'jump' ORDER BY planned_at"
    expected = [("r3", 0.5), ("m1", 0.25)]
    assert duckdb.sql(sql.format(f"read_parquet('{output}/_runs/*/profile.parquet')")).fetchall() == expected
    with Session(output) as session:
        found = session.run(sql.format("profiles")).to_pylist()
        assert [(one["run_id"], one["number"]) for one in found] == expected
        flips = session.run("SELECT number, num_videos, against FROM profiles WHERE kind = 'flips'").to_pylist()
        assert flips == [{"number": 0.25, "num_videos": 200, "against": "r3"}]


def test_the_profile_of_a_first_run_has_no_distances(tmp_path, capsys):
    store = Store(str(tmp_path))
    write_run(store, "r1", [*rows(0, 3), row("/v/x", status="corrupt", size_bytes=None, codec=None)])
    assert compare(store.uri, "--max-drift", "0", "--max-flips", "0") == 0
    text = capsys.readouterr().out
    assert "run r1 is the first of" in text
    assert text.splitlines()[-1].startswith("next: vidray report")
    assert set(read_profiles(store)["kind"].to_pylist()) == {"share", "quantile"}


def test_a_run_in_which_nothing_was_scored_is_no_distance(tmp_path):
    store = Store(str(tmp_path))
    write_run(store, "r1", rows(0, 50, status="access_denied"), outcome="too_many_failures")
    write_run(store, "r2", rows(50, 100), day=2)
    found = compare_runs(store.uri)
    assert {one.name: one.told for one in found.changes}["label"] == "nothing to compare"
    write_profile(found)
    distances = [one for one in read_profiles(store).to_pylist() if one["kind"] == "distance"]
    assert "status" in {one["name"] for one in distances}
    assert "label" not in {one["name"] for one in distances}


def test_nothing_of_an_output_stumbles_over_a_profile(tmp_path, capsys):
    """Two real nights: verify, compact, query, and a third night that finds all done."""
    model = make_videomae(tmp_path / "model", initializer_range=0.5)
    output, videos = str(tmp_path / "scores"), tmp_path / "videos"
    videos.mkdir()
    for night in range(2):
        for number in range(3):
            data = motion_video("left", seed=10 * night + number, num_frames=8)
            (videos / f"{night}-{number}.mp4").write_bytes(data)
        vidray.score(videos, model, output, quiet=True, views="1x1")
        assert compare(output) == 0
    keys = pa.concat_tables(read_keys(Store(output)))
    assert (keys.num_rows, len(Store(output).list("_keys"))) == (6, 0)
    assert read_profiles(Store(output)).num_rows > 20
    assert cli(["verify", "--output", output]) == 0
    assert cli(["compact", "--output", output]) == 0
    assert cli(["query", "--output", output]) == 0
    assert vidray.score(videos, model, output, quiet=True, views="1x1").verdict.num_done == 6
    assert compare(output) == 0


def test_what_cannot_be_compared_is_one_line(output, tmp_path, capsys):
    Store(output).create("_runs/open/plan.parquet", b"")  # it has not ended
    for arguments, code, message in (
        (["--output", output, "r9"], 2, "RUN: got 'r9', allowed is a run that has ended, of the last: r1, r2, r3, m1"),
        (["--output", output, "open"], 2, "RUN: got 'open', allowed is a run that has ended"),
        (["--output", output, "r1", "r1"], 2, "RUN: got 'r1' twice, allowed are two runs"),
        (["--output", output, "r1", "r2", "r3"], 2, "RUN: got 'r1 r2 r3', allowed is two runs"),
        (["--output", output, "--max-drift", "1.1"], 2, "--max-drift: got 1.1, allowed is a number from 0 to 1"),
        (["--output", str(tmp_path / "no")], 1, "holds no run of vidray score that has ended"),
    ):
        assert cli(["compare", *arguments]) == code
        text = capsys.readouterr().err
        assert message in text
        assert len(text.splitlines()) == 1


def test_a_damaged_file_is_one_line(output):
    Store(output).overwrite("_runs/r2/summary.json", b"{")
    with pytest.raises(RunError, match=r"_runs/r2/summary\.json cannot be read"):
        compare_runs(output)
    Store(output).create("_runs/r1/profile.parquet", b"PAR1")
    with pytest.raises(RunError, match=r"_runs/r1/profile\.parquet cannot be read"):
        read_profiles(Store(output))


def test_the_same_run_twice_is_refused(output):
    with pytest.raises(UsageError, match="two runs"):
        compare_runs(output, "m1", "m1")


def test_hostile_names_do_not_reach_the_terminal(tmp_path, capsys):
    store = Store(str(tmp_path))
    hostile = "\x1b[31mred\u202e"
    write_run(store, "r1", rows(0, 100))
    write_run(store, "r2", rows(100, 200, label=hostile), day=2, model=hostile)
    assert compare(store.uri) == 0
    text = capsys.readouterr().out
    assert "\\x1b[31mred\\u202e" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_a_profile_says_nothing_of_single_videos(output):
    write_profile(compare_runs(output, "m1"))
    table = read_profiles(Store(output))
    assert not any("/v/" in str(value) for column in table.columns for value in column.to_pylist())
