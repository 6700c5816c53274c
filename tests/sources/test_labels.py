"""Labelled sources of every form become one manifest, and what is wrong with one is said before anything is trained."""

from __future__ import annotations

import csv
import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.stores import filesystem
from vidray.errors import UsageError
from vidray.sources.labels import LABELLED_SCHEMA, LabelledManifest, LabelSource, load_for_evaluation, load_labelled

ODD_LABELS = ("Größe 大", "a b", "cup\\half", "x#y?z&=1%20")


def touch(path: Path) -> Path:
    """A file that stands for a video; nothing here decodes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"video")
    return path


def by_class(folder: Path, *, labels: tuple[str, ...] = ("jump", "run"), num_videos: int = 4) -> Path:
    for label in labels:
        for number in range(num_videos):
            touch(folder / label / f"{number}.mp4")
    return folder


def ucf101(folder: Path, *, num_groups: int = 5, clips_per_group: int = 3) -> Path:
    for label in ("Archery", "Bowling"):
        for group in range(1, num_groups + 1):
            for clip in range(1, clips_per_group + 1):
                touch(folder / label / f"v_{label}_g{group:02d}_c{clip:02d}.avi")
    return folder


def load(*sources: Path | str, **options: object) -> LabelledManifest:
    return load_labelled(LabelSource(source=tuple(map(str, sources)), **options))  # type: ignore[arg-type]


def splits(manifest: LabelledManifest) -> dict[str, str]:
    """File name → split."""
    rows = manifest.table.select(["uri", "split"]).to_pylist()
    return {row["uri"].rpartition("/")[2]: row["split"] for row in rows}


def test_folders_by_class_give_sorted_labels_and_a_validation_part(tmp_path: Path) -> None:
    manifest = load(by_class(tmp_path, labels=("run", "jump", "Zumba")))
    assert manifest.labels == ("Zumba", "jump", "run")
    assert manifest.table.schema == LABELLED_SCHEMA
    for row in manifest.table.to_pylist():
        assert row["uri"].rpartition("/")[0] == str(tmp_path / row["label"])
        assert manifest.labels[row["label_id"]] == row["label"]
        assert row["etag"] is not None
    for split in ("train", "val"):
        assert set(manifest.rows_of(split)["label"].to_pylist()) == set(manifest.labels)


def test_split_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        by_class(tmp_path / split, num_videos=2)
    manifest = load(tmp_path)
    assert {split: manifest.count(split) for split in ("train", "val", "test")} == {"train": 4, "val": 4, "test": 4}
    assert manifest.labels == ("jump", "run")


def test_folders_given_one_by_one_keep_their_splits(tmp_path: Path) -> None:
    manifest = load(by_class(tmp_path / "train"), by_class(tmp_path / "val", num_videos=1))
    assert (manifest.count("train"), manifest.count("val")) == (8, 2)


def test_a_class_may_be_called_test(tmp_path: Path) -> None:
    assert load(by_class(tmp_path, labels=("test", "run"))).labels == ("run", "test")


def test_odd_labels_survive_folders_and_storage(tmp_path: Path) -> None:
    manifest = load(by_class(tmp_path, labels=ODD_LABELS))
    assert set(manifest.labels) == set(ODD_LABELS)
    again = LabelledManifest.from_parquet(manifest.to_parquet())
    assert again.labels == manifest.labels
    assert again.table.equals(manifest.table)


def test_labels_with_slashes_survive_tables(tmp_path: Path) -> None:
    rows = [{"uri": f"{touch(tmp_path / f'{i}.mp4').name}", "label": ("swing/sit", "a b/ü")[i % 2]} for i in range(4)]
    table = tmp_path / "labels.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = load(table)
    assert manifest.labels == ("a b/ü", "swing/sit")
    assert manifest.table["label"].to_pylist() == ["swing/sit", "a b/ü"] * 2
    assert None not in manifest.table["etag"].to_pylist()


@pytest.mark.parametrize("extension", ["csv", "parquet"])
def test_a_table_may_name_split_group_and_times(tmp_path: Path, extension: str) -> None:
    columns = {
        "uri": [str(touch(tmp_path / f"{i}.mp4")) for i in range(4)],
        "label": ["a", "b", "a", "b"],
        "split": ["train", "Training", "val", "valid"],
        "group": ["g1", "g2", "g3", "g4"],
        "start": [0.0, 1.5, 2.0, 3.0],
        "end": [1.0, 2.5, 4.0, 5.0],
    }
    path = tmp_path / f"labels.{extension}"
    if extension == "csv":
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([list(columns), *zip(*columns.values(), strict=True)])
    else:
        pq.write_table(pa.table(columns), path)
    table = load(path).table
    assert table["split"].to_pylist() == ["train", "train", "val", "val"]
    assert table["group"].to_pylist() == columns["group"]
    assert table["start_seconds"].to_pylist() == columns["start"]
    assert table["end_seconds"].to_pylist() == columns["end"]


def test_one_file_may_hold_several_clips(tmp_path: Path) -> None:
    touch(tmp_path / "long.mp4")
    rows = [f"long.mp4,{label},{start},{start + 2}" for label in "ab" for start in range(ord(label), ord(label) + 6, 2)]
    (tmp_path / "clips.csv").write_text(
        "\n".join(["uri,label,start,end,group", *(f"{r},{i}" for i, r in enumerate(rows))])
    )
    manifest = load(tmp_path / "clips.csv", group_column="group")
    assert manifest.table.num_rows == 6
    assert manifest.table["start_seconds"].to_pylist() == sorted(manifest.table["start_seconds"].to_pylist())


def test_kinetics_rows_find_cut_files_and_whole_ones(tmp_path: Path) -> None:
    touch(tmp_path / "train" / "abc-_123456_000010_000020.mp4")
    touch(tmp_path / "train" / "whole_video.webm")
    touch(tmp_path / "val" / "valvideo___000000_000010.mp4")
    touch(tmp_path / "val" / "valvideo_2.mp4")
    (tmp_path / "kinetics.csv").write_text(
        "label,youtube_id,time_start,time_end,split\n"
        "abseiling,abc-_123456,10,20,train\n"
        "air drumming,whole_video,3,13,train\n"
        "abseiling,valvideo__,0,10,val\n"
        "air drumming,valvideo_2,5,15,val\n"
        "abseiling,missing_one,0,10,train\n"
    )
    rows = {row["group"]: row for row in load(tmp_path / "kinetics.csv").table.to_pylist()}
    cut, whole, missing = rows["abc-_123456"], rows["whole_video"], rows["missing_one"]
    assert cut["uri"].endswith("abc-_123456_000010_000020.mp4")
    assert (cut["start_seconds"], cut["end_seconds"]) == (None, None)  # the file is the clip already
    assert whole["uri"].endswith("whole_video.webm")
    assert (whole["start_seconds"], whole["end_seconds"]) == (3.0, 13.0)
    assert (missing["etag"], missing["split"]) == (None, "train")  # it will be counted as a bad video
    assert rows["valvideo__"]["split"] == "val"


def test_ucf101_lists_name_their_split(tmp_path: Path) -> None:
    videos = ucf101(tmp_path / "UCF-101", num_groups=4)
    lists = tmp_path / "lists"
    lists.mkdir()
    names = sorted(str(path.relative_to(videos)) for path in videos.rglob("*.avi"))
    number = {"Archery": 1, "Bowling": 2}
    train = [f"{name} {number[name.partition('/')[0]]}\r\n" for name in names if "_g01_" not in name]
    (lists / "trainlist01.txt").write_text("".join(train))
    (lists / "testlist01.txt").write_text("".join(f"{name}\n" for name in names if "_g01_" in name))
    manifest = load(lists / "trainlist01.txt", lists / "testlist01.txt", video_root=str(videos))
    assert {name for name, split in splits(manifest).items() if split == "test"} == {
        f"v_{label}_g01_c{clip:02d}.avi" for label in ("Archery", "Bowling") for clip in (1, 2, 3)
    }
    assert manifest.count("train") + manifest.count("val") == 18
    assert manifest.count("val") >= 6  # a group of three of each label
    assert manifest.labels == ("Archery", "Bowling")


def test_no_group_is_on_both_sides_and_the_seed_decides(tmp_path: Path) -> None:
    folder = ucf101(tmp_path)
    manifest = load(folder, validation_share=0.2, seed=3)
    groups = {split: set(manifest.rows_of(split)["group"].to_pylist()) for split in ("train", "val")}
    assert not groups["train"] & groups["val"]
    assert manifest.rows_of("val")["label"].to_pylist().count("Archery") == 3
    assert splits(load(folder, validation_share=0.2, seed=3)) == splits(manifest)
    others = [splits(load(folder, validation_share=0.2, seed=seed)) for seed in range(4, 8)]
    assert any(other != splits(manifest) for other in others)


def test_the_split_does_not_depend_on_where_the_videos_lie(tmp_path: Path) -> None:
    here, there = by_class(tmp_path / "here", num_videos=9), by_class(tmp_path / "a" / "b", num_videos=9)
    names = [
        {(r["label"], r["uri"].rpartition("/")[2]): r["split"] for r in load(folder).table.to_pylist()}
        for folder in (here, there)
    ]
    assert names[0] == names[1]


def test_a_group_regex_keeps_scenes_together(tmp_path: Path) -> None:
    for label in ("a", "b"):
        for scene in range(4):
            for take in range(3):
                touch(tmp_path / label / f"{label}{scene}-take{take}.mp4")
    manifest = load(tmp_path, group_regex=r"/([ab]\d)-take")
    assert set(manifest.table["group"].to_pylist()) == {f"{label}{scene}" for label in "ab" for scene in range(4)}
    parts = [set(manifest.rows_of(split)["group"].to_pylist()) for split in ("train", "val")]
    assert not parts[0] & parts[1]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a web server that shows ``tmp_path``, and the requests that it got, as ``GET /name``."""
    requests: list[str] = []

    class Recorder(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            requests.append(f"{self.command} {self.path}")

    handler = functools.partial(Recorder, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
        server.shutdown()


@pytest.mark.parametrize("extension", ["csv", "parquet"])
def test_a_table_is_downloaded_once(tmp_path: Path, served: tuple[str, list[str]], extension: str) -> None:
    address, requests = served
    rows = [{"uri": touch(tmp_path / f"{i}.mp4").name, "label": "ab"[i % 2]} for i in range(4)]
    path = tmp_path / f"labels.{extension}"
    if extension == "csv":
        path.write_text("uri,label\n" + "".join(f"{row['uri']},{row['label']}\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    table = load(f"{address}/{path.name}").table
    assert table["uri"].to_pylist() == [f"{address}/{i}.mp4" for i in range(4)]
    assert table["size_bytes"].to_pylist() == [5] * 4
    assert [request for request in requests if path.name in request] == [f"GET /{path.name}"]


def test_labelled_videos_on_an_object_store(s3_bucket: str) -> None:
    fs, root = filesystem(s3_bucket)
    for label in ("jump", "größe / no"):
        for number in range(3):
            fs.pipe_file(f"{root}/set/{label.replace(' / ', '_')}/{number}.mp4", b"video")
    manifest = load(f"{s3_bucket}/set")
    assert manifest.labels == ("größe_no", "jump")
    assert all(uri.startswith(f"{s3_bucket}/set/") for uri in manifest.table["uri"].to_pylist())


def test_a_manifest_of_an_earlier_version_can_be_read(tmp_path: Path) -> None:
    """The key in the file's metadata is part of the format, wherever the module that reads it may move."""
    manifest = load(by_class(tmp_path))
    metadata = pq.read_schema(pa.BufferReader(manifest.to_parquet())).metadata
    assert json.loads(metadata[b"vidray.labels"]) == ["jump", "run"]


def test_evaluation_takes_every_row_and_the_models_label_order(tmp_path: Path) -> None:
    manifest = load_for_evaluation(
        LabelSource(source=(str(by_class(tmp_path, num_videos=1)),)), ["walk", "run", "jump"]
    )
    assert manifest.count("test") == 2
    assert sorted(manifest.table["label_id"].to_pylist()) == [1, 2]
    with pytest.raises(UsageError, match=r"the model does not know these labels: 'run' \(1 in test\)"):
        load_for_evaluation(LabelSource(source=(str(tmp_path),)), ["walk", "jump"])


# -- what is refused --------------------------------------------------------------------------------------------------


def refused(*sources: Path | str, **options: object) -> str:
    with pytest.raises(UsageError) as caught:
        load(*sources, **options)
    return str(caught.value)


def test_an_empty_source_is_refused(tmp_path: Path) -> None:
    assert "nothing found" in refused(tmp_path)


def test_one_class_is_refused(tmp_path: Path) -> None:
    assert "'jump'; at least two are needed" in refused(by_class(tmp_path, labels=("jump",)))


def test_a_class_with_one_video_is_refused_only_if_it_must_be_divided(tmp_path: Path) -> None:
    folder = by_class(tmp_path / "train")
    touch(folder / "rare" / "0.mp4")
    assert "'rare' (1 videos)" in refused(folder)
    by_class(tmp_path / "val", num_videos=1)
    assert load(tmp_path).labels == ("jump", "rare", "run")


def test_a_class_in_one_group_is_refused(tmp_path: Path) -> None:
    folder = ucf101(tmp_path, num_groups=3)
    for clip in range(5):
        touch(folder / "Diving" / f"v_Diving_g01_c{clip:02d}.avi")
    assert "all their videos in one group: 'Diving' (5 videos)" in refused(folder)


def test_an_unknown_label_in_the_validation_part_is_refused(tmp_path: Path) -> None:
    by_class(tmp_path / "train")
    by_class(tmp_path / "val", labels=("jump", "fly"))
    assert "does not know these labels: 'fly' (4 in val)" in refused(tmp_path)


def test_a_source_without_a_training_part_is_refused(tmp_path: Path) -> None:
    assert "no training video" in refused(by_class(tmp_path / "val"))


def test_a_video_outside_a_label_folder_is_refused(tmp_path: Path) -> None:
    touch(by_class(tmp_path) / "loose.mp4")
    assert "loose.mp4 lies in no folder that names its label" in refused(tmp_path)


def test_a_video_under_two_labels_is_refused(tmp_path: Path) -> None:
    video = touch(tmp_path / "0.mp4")
    (tmp_path / "t.csv").write_text(f"uri,label\n{video},a\n{video},b\n")
    assert "0.mp4 is listed twice, as 'a' and as 'b'" in refused(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text(f"uri,label,split\n{video},a,train\n{video},a,val\n")
    assert "0.mp4 is listed twice, as 'a' in train and as 'a' in val" in refused(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("uri,label\n0.mp4,a\n1.mp4,\n", "row 2 of {path}: no label"),
        ("uri,label\n0.mp4,a\n1.mp4,  \n", "row 2 of {path}: no label"),
        ("uri,label,split\n0.mp4,a,holdout\n", "row 1 of {path}: split is 'holdout', allowed are train, val and test"),
        ("uri,label,start,end\n0.mp4,a,5,5\n", "row 1 of {path}: a clip must end after it starts"),
        ("uri,label,start\n0.mp4,a,soon\n", "row 1 of {path}: start must be a number of seconds, got 'soon'"),
        ("uri,class\n0.mp4,a\n", "needs a column 'label'"),
        ("name,label\n0.mp4,a\n", "needs a column 'label', and 'uri' or one of file, filename, youtube_id"),
        ("uri,label\n", "no row in"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, text: str, message: str) -> None:
    for number in range(2):
        touch(tmp_path / f"{number}.mp4")
    path = tmp_path / "labels.csv"
    path.write_text(text)
    assert message.format(path=path) in refused(path)


def test_options_that_cannot_work_are_refused(tmp_path: Path) -> None:
    folder = by_class(tmp_path)
    assert "no regular expression" in refused(folder, group_regex="(")
    assert "is no table" in refused(folder, group_column="scene")
    assert "between 0 and 1" in refused(folder, validation_share=0.0)
    (tmp_path / "t.csv").write_text("uri,label\nrun/0.mp4,a\n")
    assert "has no such column" in refused(tmp_path / "t.csv", group_column="scene")
    assert "cannot read" in refused(tmp_path / "missing.csv")
