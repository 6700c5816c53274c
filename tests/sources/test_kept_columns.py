"""A manifest's own columns, with their types, for the uri that a listing gives the same row."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidray.errors import UsageError
from vidray.sources.kept_columns import KeptColumns, places_of, with_kept
from vidray.sources.manifest import list_sources

TAKEN = {"uri", "label", "status"}


def read_kept(sources: list[str], names: list[str]) -> pa.Table:
    return KeptColumns(sources, names, taken=TAKEN).of_manifests


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.mp4").write_bytes(b"video")
    return tmp_path


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


CSV = "uri,camera,site,day,note\na.mp4,7,north,2026-11-01,\n./b.mp4,8,south,2026-11-02,x\n"


def test_columns_of_a_csv_have_the_types_that_they_look_like(folder: Path) -> None:
    manifest = write(folder, "m.csv", "\ufeff" + CSV)
    kept = read_kept([manifest], ["camera", "day", "note"])
    kept = kept.drop_columns(["start_seconds", "end_seconds"])
    assert kept.schema.types == [pa.string(), pa.int64(), pa.date32(), pa.string()]
    assert kept.to_pylist() == [
        {"uri": str(folder / "a.mp4"), "camera": 7, "day": datetime.date(2026, 11, 1), "note": None},
        {"uri": str(folder / "b.mp4"), "camera": 8, "day": datetime.date(2026, 11, 2), "note": "x"},
    ]
    assert kept["uri"].to_pylist() == list_sources([manifest])["uri"].to_pylist()


def test_all_are_those_that_mean_nothing_to_us(folder: Path) -> None:
    manifest = write(folder, "m.csv", "uri,label,etag,camera\na.mp4,x,1,7\n")
    assert read_kept([manifest], ["all"]).column_names[3:] == ["camera"]


def test_parquet_and_json_lines_keep_their_own_types_and_others_are_null(folder: Path) -> None:
    tags = pa.array([["x", "y"], None], pa.list_(pa.string()))
    table = pa.table({"uri": ["a.mp4", "b.mp4"], "tags": tags, "gain": pa.array([1, 2], pa.int16())})
    pq.write_table(table, folder / "m.parquet")
    lines = write(folder, "m.jsonl", json.dumps({"uri": "c.mp4", "site": "north"}) + "\n")
    kept = read_kept([str(folder / "m.parquet"), lines], ["all"])
    assert kept.schema.types[3:] == [pa.list_(pa.string()), pa.int16(), pa.string()]
    listed = pa.table({"uri": [str(folder / f"{name}.mp4") for name in "cabz"]})
    joined = listed.join(places_of(kept, "at").drop_columns(["start_seconds", "end_seconds"]), "uri").sort_by("at")
    assert joined["at"].to_pylist() == [0, 1, 2, None]
    rows = with_kept(joined.take([2, 0, 1, 3]), kept, "at").to_pylist()
    assert [(row["tags"], row["gain"], row["site"]) for row in rows] == [
        *[(None, None, "north"), (["x", "y"], 1, None), (None, 2, None), (None, None, None)]
    ]


def test_a_uri_that_stands_twice_alike_is_one(folder: Path) -> None:
    manifest = write(folder, "m.csv", "uri,camera\na.mp4,7\nb.mp4,8\n./a.mp4,7\n")
    assert read_kept([manifest], ["camera"])["camera"].to_pylist() == [7, 8]


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        (
            "uri,status\na.mp4,x\n",
            ["status"],
            "--keep-columns: got 'status', allowed is names that prediction rows do not",
        ),
        ("uri,camera\na.mp4,7\na.mp4,8\n", ["camera"], "a.mp4 stands in two rows that differ: camera 7 and 8"),
        ("file,camera\na.mp4,7\n", ["camera"], "needs a column 'uri'"),
        ("uri,camera\na.mp4,7,9,9\n", ["camera"], "cannot read the manifest"),
    ],
)
def test_what_will_not_do_is_refused_by_name(folder: Path, text: str, names: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_kept([write(folder, "m.csv", text)], names)


def test_manifests_with_other_types_are_refused(folder: Path) -> None:
    one, other = write(folder, "1.csv", "uri,x\na.mp4,7\n"), write(folder, "2.csv", "uri,x\nb.mp4,seven\n")
    with pytest.raises(UsageError, match="the manifests have different types in a column"):
        read_kept([one, other], ["x"])


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("m.csv", "camera,lens", "--keep-columns: got 'lens', allowed is columns that a manifest has: camera, site"),
        ("", "lens", "--keep-columns: got 'lens', allowed is columns that a manifest has: there is none; or beside"),
        ("", "all", "--keep-columns: got 'all', allowed is columns that a manifest has: there is none"),
    ],
)
def test_names_that_nothing_has_are_refused(folder: Path, source: str, name: str, message: str) -> None:
    write(folder, "m.csv", CSV)
    kept = KeptColumns([f"{folder}/{source}"], name.split(","), taken=TAKEN)
    list_sources([f"{folder}/{source}"], sidecars=kept.sidecars)
    with pytest.raises(UsageError, match=message):
        kept.tables()
