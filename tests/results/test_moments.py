"""Windows become moments: merged by hand, by SQL and by us alike; and every format is one that others read."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from tests.support.http_server import FileServer
from tests.support.videos import make_video
from vidray.cli.main import main as cli
from vidray.results.moments import Moment, merge, names_of, to_webvtt
from vidray.scoring.output import PREDICTION_SCHEMA, parquet_bytes, part_path
from vidray.storage.store import Store

ROOT = Path(__file__).resolve().parents[2]


def windows(*entries: tuple[float, float, str, float]) -> list[dict]:
    names = ("start_seconds", "end_seconds", "label", "score")
    return [dict(zip(names, entry, strict=True)) | {"top_k": []} for entry in entries]


SEGMENTS = windows(
    (0, 2, "run", 0.9),
    (1, 3, "run", 0.7),
    (2, 4, "jump", 0.8),
    (3, 5, "run", 0.6),  # touches what ran until 3
    (4, 6, "run", 0.3),
    (6, 8, "run", 0.5),  # what lies between is below 0.5
    (7, 9, "jump", 0.6),
)
MOMENTS = [(0, 5, "run", 0.9, 2.2 / 3), (2, 4, "jump", 0.8, 0.8), (6, 8, "run", 0.5, 0.5), (7, 9, "jump", 0.6, 0.6)]
"""Worked out by hand, of windows from 0.5 on."""


def as_tuples(moments: list[Moment]) -> list[tuple]:
    return [
        (m.start_seconds, m.end_seconds, m.label, pytest.approx(m.score), pytest.approx(m.mean_score)) for m in moments
    ]


def test_windows_that_touch_or_overlap_and_have_one_label_are_one_moment() -> None:
    assert as_tuples(merge("v", SEGMENTS, min_score=0.5)) == MOMENTS
    assert as_tuples(merge("v", SEGMENTS, min_score=0.3))[0][:2] == (0, 8)
    assert merge("v", SEGMENTS, min_score=0.95) == [] == merge("v", [], min_score=0)


# -- an output ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Three videos scored in windows by one model, before it by another, and a failed one."""
    empty = dict.fromkeys(PREDICTION_SCHEMA.names)
    rows = [
        empty | {"uri": uri, "status": status, "result_key": key, "attempts": 1, "scored_at": at, "segments": segments}
        for uri, status, key, at, segments in (
            ("/v/a/one.mp4", "ok", "new", 20, SEGMENTS),
            ("/v/b/one.mp4", "ok", "new", 21, windows((0, 1.5, "jump", 0.75))),
            ("/v/two <1>.mp4", "ok", "new", 22, windows((0, 1, "a --> b & <c>", 0.75))),
            ("/v/a/one.mp4", "ok", "old", 10, windows((0, 9, "sit", 1.0))),
            ("/v/bad.mp4", "corrupt", "new", 23, None),
        )
    ]
    table = pa.Table.from_pylist(rows, PREDICTION_SCHEMA)
    Store(str(tmp_path)).create(part_path("r", 0), parquet_bytes(table, {}))
    return tmp_path


def queries(heading: str) -> list[str]:
    """The SQL of a section of the docs."""
    section = (ROOT / "docs/output.md").read_text().split(f"### {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```sql\n(.*?)```", section, re.DOTALL)


def test_the_sql_of_the_docs_finds_the_same_moments(output: Path) -> None:
    with duckdb.connect() as db:
        db.execute(f"CREATE VIEW current AS SELECT * FROM '{output}/predictions/*/*.parquet' WHERE result_key = 'new'")
        for query in queries("Segments and moments"):
            db.execute(query)
        assert db.sql("SELECT count(*) FROM segments").fetchall() == [(9,)]
        found = db.sql("SELECT * FROM moments(0.5) WHERE uri = '/v/a/one.mp4' ORDER BY start_seconds").fetchall()
    expected = [(*moment[:3], pytest.approx(moment[3]), pytest.approx(moment[4])) for moment in MOMENTS]
    assert [row[1:] for row in found] == expected


def test_csv(output: Path, capsys) -> None:
    assert cli(["export", "--output", str(output)]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert list(rows[0]) == ["uri", "start_seconds", "end_seconds", "label", "score", "mean_score"]
    of_one = [row for row in rows if row["uri"] == "/v/a/one.mp4"]
    assert [(float(r["start_seconds"]), float(r["end_seconds"]), r["label"]) for r in of_one] == [
        m[:3] for m in MOMENTS
    ]
    assert len(rows) == 6


def test_activitynet(output: Path, tmp_path: Path, capsys) -> None:
    place = tmp_path / "sub" / "found.json"
    arguments = ["export", "--output", str(output), "--format", "activitynet", "--to", str(place)]
    assert cli([*arguments, "--min-score", "0.7"]) == 0
    found = json.loads(place.read_text())
    assert found.keys() == {"version", "results", "external_data"}
    assert found["results"].keys() == {"a/one", "b/one", "two <1>"}
    assert found["results"]["b/one"] == [{"label": "jump", "score": 0.75, "segment": [0, 1.5]}]
    assert cli(arguments) == 1
    assert "is there already" in capsys.readouterr().err


def test_webvtt_is_a_file_for_each_video(output: Path, tmp_path: Path, capsys) -> None:
    arguments = ["export", "--output", str(output), "--format", "webvtt"]
    assert cli(arguments) == 2
    assert "--to: got None, allowed is a folder for the files of 3 videos" in capsys.readouterr().err
    assert cli([*arguments, "--to", str(tmp_path / "chapters")]) == 0
    assert (tmp_path / "chapters/b/one.vtt").read_text() == "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\njump\n"
    assert "a --&gt; b &amp; &lt;c&gt;" in (tmp_path / "chapters/two <1>.vtt").read_text()


def test_no_uri_leads_out_of_the_folder(tmp_path: Path) -> None:
    empty = dict.fromkeys(PREDICTION_SCHEMA.names)
    uris = ("s3://b/x/../up.mp4", "s3://b/y/up.mp4")
    rows = [
        empty | {"uri": uri, "status": "ok", "result_key": "k", "scored_at": 1, "segments": SEGMENTS[:1]}
        for uri in uris
    ]
    table = pa.Table.from_pylist(rows, PREDICTION_SCHEMA)
    Store(str(tmp_path / "out")).create(part_path("r", 0), parquet_bytes(table, {}))
    place = tmp_path / "inner" / "chapters"
    assert cli(["export", "--output", str(tmp_path / "out"), "--format", "webvtt", "--to", str(place)]) == 0
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.vtt")) == [
        "inner/chapters/_/up.vtt",
        "inner/chapters/y/up.vtt",
    ]


def test_times_of_webvtt_are_rounded_as_a_whole() -> None:
    moment = Moment(uri="v", start_seconds=59.9996, end_seconds=3723.5, label="x", score=1, mean_score=1)
    assert "00:01:00.000 --> 01:02:03.500" in to_webvtt([moment])


def test_names_are_as_short_as_they_can_be() -> None:
    uris = ["s3://b/x/clip.mp4", "s3://b/y/clip.mp4", "s3://b/y/clip.avi", "s3://b/z/other.mp4"]
    assert names_of(uris) == {
        "s3://b/x/clip.mp4": "x/clip",
        "s3://b/y/clip.mp4": "s3://b/y/clip.mp4",
        "s3://b/y/clip.avi": "s3://b/y/clip.avi",
        "s3://b/z/other.mp4": "other",
    }


def test_an_output_without_segments_is_said_to_be_one(output: Path, tmp_path: Path, capsys) -> None:
    rows = [dict.fromkeys(PREDICTION_SCHEMA.names) | {"uri": "/v/a.mp4", "status": "ok", "result_key": "k"}]
    Store(str(tmp_path / "other")).create(
        part_path("r", 0), parquet_bytes(pa.Table.from_pylist(rows, PREDICTION_SCHEMA), {})
    )
    assert cli(["export", "--output", str(tmp_path / "other")]) == 1
    assert "holds no segments; vidray score --segments SECONDS finds them" in capsys.readouterr().err


PAGE = """<video src="clip.webm"><track kind="chapters" src="clip.vtt" default></video><pre></pre><script>
const track = document.querySelector("track");
track.track.mode = "hidden";
track.onload = () => {
    const cues = [...track.track.cues].map(c => [c.startTime, c.endTime, c.getCueAsHTML().textContent]);
    document.querySelector("pre").textContent = "CUES " + JSON.stringify(cues) + " END";
};
</script>"""


@pytest.mark.long
def test_a_browser_reads_the_chapters(tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium (apt-get install chromium)")
    moments = merge("v", windows((0, 4, "run", 0.9), (3.5, 7.25, "a --> b & <c>", 0.8)), min_score=0)
    (tmp_path / "clip.vtt").write_text(to_webvtt(moments))
    (tmp_path / "clip.webm").write_bytes(make_video(num_frames=60, container="webm", codec="libvpx-vp9"))
    (tmp_path / "page.html").write_text(PAGE)
    off = ["quic", "background-networking", "component-update", "sync", "gpu"]
    flags = ["--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in off)]
    with FileServer(tmp_path) as server:
        places = [f"--user-data-dir={tmp_path}/user", f"{server.url}/page.html"]
        command = [chromium, *flags, "--virtual-time-budget=8000", "--dump-dom", *places]
        page = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    found = json.loads(html.unescape(re.search(r"CUES (.*?) END</pre>", page)[1]))
    assert found == [[0, 4, "run"], [3.5, 7.25, "a --> b & <c>"]]
