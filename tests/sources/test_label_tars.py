"""Labels lie beside the videos in a tar file; what cannot be trained with is refused by name."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.sources.test_labels import load, touch
from tests.sources.test_tar_shards import make_tar
from vidray.errors import UsageError
from vidray.sources.labels import LABELLED_SCHEMA, LabelledManifest
from vidray.sources.rows import video_of
from vidray.storage.fetch import fetch
from vidray.types import Limits


def write_shards(folder: Path, *, num_shards: int = 4, num_videos: int = 6) -> Path:
    """Tar files ``00.tar`` and so on; label, group and caption of each video lie beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(num_shards):
        members: list[tuple[str, bytes]] = []
        for number in range(num_videos):
            label = ("jump", "run")[number % 2]
            said = json.dumps({"action": label.upper(), "scene": number // 2, "deep": [1]}).encode()
            name = f"{shard}-{number}"
            members += [(f"{name}.cls", f"{label}\n".encode()), (f"{name}.json", said)]
            members += [(f"{name}.mp4", f"video {name}".encode()), (f"{name}.txt", b"a caption")]
        (folder / f"{shard:02d}.tar").write_bytes(make_tar(*members))
    return folder


def sides(manifest: LabelledManifest, column: str) -> set[tuple[str, str]]:
    """The pairs of split and part of the URI or group."""
    rows = manifest.table.to_pylist()
    return {(row["split"], row["uri"].partition("#")[0] if column == "shard" else row[column]) for row in rows}


def test_a_range_a_pattern_a_folder_and_a_list_of_tars_are_one_dataset(tmp_path: Path) -> None:
    write_shards(tmp_path)
    manifest = load(f"{tmp_path}/{{00..03}}.tar")
    assert manifest.labels == ("jump", "run")
    assert manifest.table.schema == LABELLED_SCHEMA
    assert manifest.table.num_rows == 24
    assert manifest.count("val") > 0
    for row in manifest.table.to_pylist():
        name = row["uri"].partition("#")[2].removesuffix(".mp4")
        assert fetch(video_of(row), limits=Limits()) == f"video {name}".encode()
        assert row["label"] == ("jump", "run")[int(name[-1]) % 2]
    others = [tmp_path], [f"{tmp_path}/*.tar"], [f"{tmp_path}/{n:02d}.tar" for n in range(4)]
    assert all(load(*sources).table.equals(manifest.table) for sources in others)
    assert LabelledManifest.from_parquet(manifest.to_parquet()).table.equals(manifest.table)


def test_a_key_of_the_json_may_be_the_label_and_the_group(tmp_path: Path) -> None:
    write_shards(tmp_path)
    manifest = load(tmp_path, label_key="action", group_column="scene", validation_share=0.3)
    assert manifest.labels == ("JUMP", "RUN")
    groups = sides(manifest, "group")
    assert {group for _, group in groups} == {"0", "1", "2"}
    assert len(groups) == 3, "a group on both sides"


def test_whole_shards_are_split_off_where_the_expression_says_so(tmp_path: Path) -> None:
    write_shards(tmp_path)
    assert len(sides(load(tmp_path), "shard")) > 4
    assert len(sides(load(tmp_path, group_regex=r"([^/]+)\.tar#"), "shard")) == 4


def test_the_folder_of_a_tar_may_name_its_split(tmp_path: Path) -> None:
    write_shards(tmp_path / "train")
    write_shards(tmp_path / "val", num_shards=1)
    assert {split for split, _ in sides(load(tmp_path), "shard")} == {"train", "val"}
    assert load(tmp_path).count("val") == 6


def test_beside_videos_in_folders_tars_are_what_these_came_in(tmp_path: Path) -> None:
    write_shards(tmp_path)
    for label in ("a", "b"):
        for number in range(4):
            touch(tmp_path / label / f"{number}.mp4")
    assert load(tmp_path).labels == ("a", "b")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("{00..02}.tar", {}, r"02\.tar is not there"),
        ("cut.tar", {}, r"cut\.tar: damaged tar file"),
        ("bare.tar", {}, r"bare\.tar#a\.mp4 has no label: beside it in the tar file there is no \.cls of its name"),
        ("00.tar", {"label_key": "kind"}, r"00\.tar#0-0\.mp4 has no label: .* no \.json of its name with a key 'kind'"),
        ("{0..1}.mp4", {}, r"0\.mp4 is no tar file and has no label"),
    ],
)
def test_what_cannot_be_trained_with_is_refused_by_name(
    tmp_path: Path, source: str, options: dict, message: str
) -> None:
    write_shards(tmp_path, num_shards=2)
    (tmp_path / "cut.tar").write_bytes((tmp_path / "00.tar").read_bytes()[:-20_000])
    (tmp_path / "bare.tar").write_bytes(make_tar(("a.mp4", b"video")))
    (tmp_path / "0.mp4").write_bytes(b"video")
    with pytest.raises(UsageError, match=message):
        load(f"{tmp_path}/{source}", **options)


def test_a_split_of_before_there_were_tars_loads(tmp_path: Path) -> None:
    manifest = load(write_shards(tmp_path))
    old = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(manifest.to_parquet())).drop_columns(["tar_member"]), old)
    loaded = LabelledManifest.from_parquet(old.getvalue())
    assert loaded.table.schema == LABELLED_SCHEMA
    assert loaded.table["uri"].equals(manifest.table["uri"])
