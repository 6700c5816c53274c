"""What lies beside a video in a tar file becomes columns, and whatever it holds costs bounded memory."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from tests.sources.test_tar_shards import make_tar
from tests.support.range_server import RangeServer
from vidray.errors import UsageError
from vidray.scoring.config import ScoreConfig
from vidray.scoring.plan_rows import kept_columns
from vidray.scoring.planning import plan_fresh
from vidray.sources import sidecars
from vidray.sources.kept_columns import KeptColumns
from vidray.sources.manifest import list_sources
from vidray.sources.sidecars import SidecarTable
from vidray.storage.store import Store

TAKEN = {"uri", "label", "status"}


def kept(source: object, *names: str) -> pa.Table:
    """These columns of the rows of a plan, with the ends of their URIs."""
    config = ScoreConfig(source=(str(source),), model="-", output="-", keep_columns=",".join(names))
    known = {"fingerprint": "", "view_config": "{}", "precision": "fp32", "result_key": "k"}
    plan, _ = plan_fresh(Store(f"memory://{uuid.uuid4().hex}"), config, **known)
    rows = pa.concat_tables(plan.rows.tables()).sort_by("uri")
    uris = [uri.rpartition("#")[2] for uri in rows["uri"].to_pylist()]
    return pa.table({"uri": uris} | {name: rows[name] for name in kept_columns(rows.schema)})


def test_they_are_joined_by_name_wherever_they_lie_in_the_tar(tmp_path: Path) -> None:
    said = json.dumps({"camera": 7, "site": "north", "ü": 1}).encode()
    members = ("a.cls", b"3\n"), ("a.json", said), ("a.mp4", b"1"), ("d/b.MP4", b"2"), ("d/b.txt", b" a dog \n")
    (tmp_path / "0.tar").write_bytes(make_tar(*members, ("c.mp4", b"3"), ("x.json", b"{}")))
    (tmp_path / "1.tar").write_bytes(make_tar(("a.mp4", b"4"), ("a.JSON", b'\xef\xbb\xbf{"camera": 8}')))
    assert kept(tmp_path, "camera", "cls", "txt").to_pylist() == [
        {"uri": "a.mp4", "cls": "3", "camera": 7, "txt": None},
        {"uri": "c.mp4", "cls": None, "camera": None, "txt": None},
        {"uri": "d/b.MP4", "cls": None, "camera": None, "txt": "a dog"},
        {"uri": "a.mp4", "cls": None, "camera": 8, "txt": None},
    ]
    assert kept(tmp_path, "all").schema.names == ["uri", "camera", "cls", "site", "txt", "ü"]


def test_all_leaves_out_names_that_rows_have(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(make_tar(("a.mp4", b"1"), ("a.json", b'{"status": "success", "key": "0"}')))
    assert kept(tmp_path, "all").to_pylist() == [{"uri": "a.mp4", "key": "0"}]
    with pytest.raises(UsageError, match="'status', allowed is names that prediction rows do not have"):
        kept(tmp_path, "status")


def test_a_key_called_uri_is_no_name_of_the_video(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(make_tar(("a.mp4", b"1"), ("a.json", b'{"uri": "x", "a": 1}')))
    said = SidecarTable(["uri", "a"])
    list_sources([str(tmp_path)], sidecars=said)
    assert said.table().to_pylist() == [{"uri": f"{tmp_path}/0.tar#a.mp4", "a": 1}]


def test_values_are_held_in_bounded_memory(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sidecars, "_MAX_HELD_BYTES", 1_000)
    members = [(f"{n}.{end}", data) for n in range(9) for end, data in (("mp4", b""), ("cls", b"x" * 300))]
    (tmp_path / "0.tar").write_bytes(make_tar(*members))
    assert kept(tmp_path, "cls")["cls"].null_count == 7


def test_a_column_has_one_type_in_all_tars(tmp_path: Path) -> None:
    for number, values in enumerate(([1, 2], [2.5, None], [3, 4])):
        beside = [
            (f"{n}.json", json.dumps({"number": value, "mixed": ["x", n, True][number], "deep": {"n": [n]}}).encode())
            for n, value in enumerate(values)
        ]
        (tmp_path / f"{number}.tar").write_bytes(make_tar(("0.mp4", b""), ("1.mp4", b""), *beside))
    table = kept(tmp_path, "number", "mixed", "deep")
    assert table["number"].type == pa.float64()
    assert table["number"].to_pylist() == [1, 2, 2.5, None, 3, 4]
    assert table["mixed"].to_pylist() == ["x", "x", "0", "1", "true", "true"]
    assert table["deep"].to_pylist() == ['{"n": [0]}', '{"n": [1]}'] * 3


HOSTILE = {
    "deep": b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    "of a gigabyte": b'{"a": "' + bytes(70_000) + b'"}',
    "no object": b"[1]",
    "no json": b"\xff\x00",
    "empty": b"",
    "a huge number": b'{"a": ' + b"9" * 5_000 + b"}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_sidecar_that_cannot_be_read_costs_its_own_values_and_is_counted(tmp_path: Path, name: str) -> None:
    good = ("b.mp4", b"2"), ("b.json", b'{"a": 1}')
    (tmp_path / "0.tar").write_bytes(make_tar(("a.json", HOSTILE[name]), ("a.mp4", b"1"), *good))
    assert kept(tmp_path, "a").to_pylist() == [{"uri": "a.mp4", "a": None}, {"uri": "b.mp4", "a": 1}]
    columns = KeptColumns([str(tmp_path)], ["a"], taken=TAKEN)
    left: Counter[str] = Counter()
    list_sources([str(tmp_path)], sidecars=columns.sidecars, left=left)
    assert [count for kind, count in left.items() if kind.startswith("sidecars that are")] == [1]


@pytest.mark.parametrize("value", ['"\\ud800"', "NaN", "1e999", str(2**63), "true", '"\\u0000"'])
def test_odd_values_are_values(tmp_path: Path, value: str) -> None:
    beside = ("a.json", f'{{"a": {value}}}'.encode()), ("b.json", b'{"a": "x"}')
    (tmp_path / "0.tar").write_bytes(make_tar(("a.mp4", b"1"), ("b.mp4", b"1"), *beside))
    first, second = kept(tmp_path, "a")["a"].to_pylist()
    assert isinstance(first, str)
    assert second == "x"


def test_a_key_of_its_own_in_each_is_refused(tmp_path: Path) -> None:
    beside = [(f"{n}.json", json.dumps({f"key {n}": n}).encode()) for n in range(1001)]
    (tmp_path / "0.tar").write_bytes(make_tar(*((f"{n}.mp4", b"") for n in range(1001)), *beside))
    with pytest.raises(UsageError, match="--keep-columns: got 'all', allowed is names of your choice"):
        kept(tmp_path, "all")
    assert kept(tmp_path, "key 7")["key 7"].null_count == 1000


def test_columns_of_a_manifest_of_tars_are_those_of_their_members(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(make_tar(("a.mp4", b"1"), ("a.cls", b"3"), ("b.mp4", b"2")))
    (tmp_path / "m.csv").write_text("uri,day\n0.tar,monday\n")
    table = kept(tmp_path / "m.csv", "day", "cls")
    assert table.to_pylist() == [
        {"uri": "a.mp4", "day": "monday", "cls": "3"},
        {"uri": "b.mp4", "day": "monday", "cls": None},
    ]


def test_they_come_with_the_headers_that_lie_beside_them() -> None:
    members = [(f"{n:03d}.{end}", data) for n in range(200) for end, data in (("json", b'{"a": 1}'), ("mp4", b"video"))]
    with RangeServer({"a.tar": make_tar(*members)}) as server:
        assert kept(f"{server.url}/a.tar", "a")["a"].to_pylist() == [1] * 200
        assert server.num_requests < 10
