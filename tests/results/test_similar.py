"""`vidray similar` ranks as a plain computation does, over the rows that are current, in the memory of one part."""

from __future__ import annotations

import datetime
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.scoring.test_history import rows
from tests.support.runs import ROOT
from vidray.cli.main import main as cli
from vidray.errors import RunError, UsageError
from vidray.results.similar import SimilarConfig, duplicates, similar
from vidray.scoring.output import EMBEDDING_TYPE, TIME_TYPE, parquet_bytes, part_path
from vidray.storage.store import Store

Values = list[float] | None


def embedded(day: int, vectors: dict[str, Values], *, key: str = "k", status: str = "ok", etag: str = "1") -> pa.Table:
    """Rows of a run that was planned on this day."""
    table = rows(*((uri, etag, status, 1) for uri in vectors), key=key)
    time = pa.repeat(pa.scalar(datetime.datetime(2026, 11, day, tzinfo=datetime.UTC), TIME_TYPE), table.num_rows)
    columns = {"planned_at": time, "scored_at": time, "embedding": pa.array(list(vectors.values()), EMBEDDING_TYPE)}
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, values)
    return table


def write(output: Path, *tables: pa.Table) -> None:
    store = Store(str(output))
    for number, table in enumerate(tables):
        store.create(part_path(f"r{number}", 0), parquet_bytes(table, {}))


def drawn(names: range, *, width: int = 5, seed: int = 0) -> dict[str, Values]:
    generator = np.random.default_rng(seed)
    return {f"/v/{name:03d}.mp4": generator.normal(size=width).astype(np.float32).tolist() for name in names}


def angle(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def find(output: Path, to: str, k: int = 20) -> list[tuple[float, str]]:
    return [tuple(found) for found in similar(SimilarConfig(output=str(output), to=to, k=k))]


def test_the_best_are_those_of_a_plain_computation_whatever_the_parts(tmp_path) -> None:
    vectors = drawn(range(60))
    names = list(vectors)
    pieces = [{name: vectors[name] for name in names[start : start + 7]} for start in range(0, 60, 7)]
    write(tmp_path, *(embedded(1, piece) for piece in pieces))
    asked = names[13]
    ranked = sorted(((angle(vectors[asked], vectors[name]), name) for name in names if name != asked), reverse=True)
    for k in (1, 20, 100):
        found = find(tmp_path, asked, k)
        assert [uri for _, uri in found] == [uri for _, uri in ranked[:k]]
        assert [score for score, _ in found] == pytest.approx([score for score, _ in ranked[:k]], abs=1e-6)


def test_only_current_rows_of_the_same_result_key_count(tmp_path) -> None:
    asked, near, far = [1.0, 0.0, 0.0], [1.0, 0.1, 0.0], [0.0, 1.0, 0.0]
    write(
        tmp_path,
        embedded(1, {"/v/asked": [0.0, 0.0, 1.0], "/v/changed": near, "/v/lost": near}, key="another model"),
        embedded(2, {"/v/asked": asked, "/v/changed": near, "/v/stays": near, "/v/none": None, "/v/zero": [0.0] * 3}),
        embedded(3, {"/v/changed": far}, etag="2"),
        embedded(3, {"/v/failed": None}, status="corrupt"),
        embedded(4, {"/v/asked": None}, key="without embeddings"),
        embedded(1, {"/v/old": None}).drop_columns(["embedding", "segments"]),
    )
    expected = [(angle(asked, near), "/v/stays"), (0.0, "/v/changed"), (0.0, "/v/zero")]
    found = find(tmp_path, "/v/asked")
    assert [uri for _, uri in found] == [uri for _, uri in expected], "equal ones come by their URIs"
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-6)


def test_a_local_file_may_be_named_by_any_path(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "out", embedded(1, {os.path.abspath("a.mp4"): [1.0, 0.0], "/v/b.mp4": [3.0, 4.0]}))
    assert cli(["similar", "--output", "out", "--to", "a.mp4"]) == 0
    assert capsys.readouterr().out == "0.6000 /v/b.mp4\n"


def test_an_output_without_embeddings_and_a_video_without_one_are_refused_by_name(tmp_path, capsys) -> None:
    write(tmp_path / "plain", embedded(1, {"/v/a": None, "/v/b": None}))
    with pytest.raises(UsageError, match=r"--output: .*plain holds no embeddings; vidray score --embeddings makes"):
        find(tmp_path / "plain", "/v/a")
    write(tmp_path / "out", embedded(1, {"/v/a": [1.0], "/v/b": None}), embedded(1, {"/v/c": None}, status="corrupt"))
    for name in ("/v/b", "/v/c", "/v/d"):
        with pytest.raises(UsageError, match=rf"--to: got '{name}', allowed is the uri of a row of .* with an"):
            find(tmp_path / "out", name)
    assert find(tmp_path / "out", "/v/a") == []
    with pytest.raises(RunError, match="holds no rows"):
        find(tmp_path / "nothing", "/v/a")
    assert cli(["similar", "--output", str(tmp_path / "out"), "--to", "/v/a", "--k", "0"]) == 2
    assert "--k: got 0, allowed is at least 1" in capsys.readouterr().err


def pairs(output: Path, least: float) -> list[tuple]:
    return [tuple(pair) for pair in duplicates(SimilarConfig(output=str(output), duplicates=least))]


@pytest.mark.parametrize("block", [1, 7, 2048])
def test_pairs_are_those_of_a_plain_computation_each_once(tmp_path, monkeypatch, block) -> None:
    monkeypatch.setattr("vidray.results.similar._BLOCK", block)
    vectors = drawn(range(40), width=3)
    names = list(vectors)
    write(tmp_path, embedded(1, dict(list(vectors.items())[:25])), embedded(1, dict(list(vectors.items())[25:])))
    expected = [
        (angle(vectors[one], vectors[other]), one, other)
        for one, other in itertools.combinations(names, 2)
        if angle(vectors[one], vectors[other]) >= 0.95
    ]
    assert len(expected) > 5
    found = pairs(tmp_path, 0.95)
    assert sorted(pair[1:] for pair in found) == sorted(pair[1:] for pair in expected)
    by_names = {pair[1:]: pair[0] for pair in expected}
    assert [pair[0] for pair in found] == pytest.approx([by_names[pair[1:]] for pair in found], abs=1e-6)


def test_pairs_are_of_current_rows_of_the_model_that_scored_last_and_zeros_are_like_nothing(tmp_path, capsys) -> None:
    write(
        tmp_path,
        embedded(1, {"/v/a": [1.0, 0.0], "/v/z": [1.0, 0.0]}, key="another model"),
        embedded(2, {"/v/a": [1.0, 0.0], "/v/b": [2.0, 0.01], "/v/c": [0.0, 0.0], "/v/d": [0.0, 0.0], "/v/e": None}),
    )
    assert cli(["similar", "--output", str(tmp_path), "--duplicates", "0.98"]) == 0
    assert capsys.readouterr().out == "1.0000 /v/a /v/b\n"
    for flags, message in (
        ([], "--to: got None, allowed is a video, or --duplicates without it"),
        (["--to", "/v/a", "--duplicates", "0.9"], "--to: got '/v/a', allowed is a video, or --duplicates without it"),
        (["--duplicates", "1.5"], "--duplicates: got 1.5, allowed is above 0, and at most 1"),
    ):
        assert cli(["similar", "--output", str(tmp_path), *flags]) == 2
        assert message in capsys.readouterr().err


def test_embeddings_of_other_lengths_in_one_result_key_are_told(tmp_path) -> None:
    write(tmp_path, embedded(1, {"/v/a": [1.0, 2.0]}), embedded(1, {"/v/b": [1.0, 2.0, 3.0]}))
    with pytest.raises(RunError, match="embeddings of 3 numbers beside 2"):
        find(tmp_path, "/v/a")


MEMORY = """
import sys
from vidray.results.similar import SimilarConfig, similar
similar(SimilarConfig(output=sys.argv[1], to="/v/000.mp4"))
print(next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_memory_does_not_grow_with_the_number_of_parts(tmp_path) -> None:
    """Parts of 4 MB: four of them, and forty."""
    first = drawn(range(250), width=4000)
    values = pa.array(list(first.values()), EMBEDDING_TYPE)
    peaks = []
    for num_parts in (4, 40):
        output = tmp_path / str(num_parts)
        tables = [embedded(1, first)]
        for number in range(1, num_parts):
            table = embedded(1, {f"/v/{number}-{place}": None for place in range(250)})
            tables.append(table.set_column(table.schema.get_field_index("embedding"), "embedding", values))
        write(output, *tables)
        script = [sys.executable, "-c", MEMORY, str(output)]
        peaks.append(int(subprocess.run(script, capture_output=True, text=True, check=True, cwd=ROOT).stdout))
    assert peaks[1] - peaks[0] < 90 * 1024**2, "36 more parts hold 144 MB"
