"""The formats that datasets come in, written here as their authors publish them, and what becomes of odd labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidray.errors import UsageError
from vidray.sources.labels import LabelSource, load_for_evaluation, load_labelled


def touch(path: Path) -> None:
    """A file that stands for a video; nothing here decodes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"video")


def rows_of(source: Path | list[Path], labels: tuple[str, ...] | None = None, **options: Any) -> dict[str, tuple]:
    """File name → (label, split)."""
    places = tuple(map(str, source if isinstance(source, list) else [source]))
    asked = LabelSource(source=places, **options)
    manifest = load_labelled(asked) if labels is None else load_for_evaluation(asked, labels)
    rows = manifest.table.to_pylist()
    return {row["uri"].rpartition("/")[2]: (row["label"], row["split"]) for row in rows}


def test_hmdb51s_split_files_name_who_trains_and_who_tests(tmp_path: Path) -> None:
    for label in ("brush_hair", "wave"):
        lines = [f"{label}_{number}.avi {number % 3} " for number in range(9)]
        for number in range(9):
            touch(tmp_path / "videos" / label / f"{label}_{number}.avi")
        (tmp_path / f"{label}_test_split1.txt").write_text("\n".join(lines) + "\n")
    files = sorted(tmp_path.glob("*_test_split1.txt"))
    rows = rows_of(files, video_root=str(tmp_path / "videos"), validation_share=0.4)
    assert len(rows) == 12, "code 0: in neither part"
    assert {label for label, _ in rows.values()} == {"brush_hair", "wave"}
    for name, (label, split) in rows.items():
        assert name.startswith(label)
        assert (split == "test") == (int(name[:-4].rpartition("_")[2]) % 3 == 2)


def test_something_somethings_json(tmp_path: Path) -> None:
    records = []
    for number in range(8):
        touch(tmp_path / "videos" / f"{number}.webm")
        what = ("Putting [something] on [something]", "Holding [something]")[number % 2]
        records.append({"id": str(number), "label": "holding a cup", "template": what, "placeholders": ["a cup"]})
    path = tmp_path / "something-something-v2-train.json"
    path.write_text(json.dumps(records))
    rows = rows_of(path, video_root=str(tmp_path / "videos"))
    assert rows["0.webm"][0] == "Putting something on something"
    assert rows["1.webm"][0] == "Holding something"
    evaluated = tmp_path / "something-something-v2-validation.json"
    evaluated.write_text(json.dumps(records))
    labels = ("Holding something", "Putting something on something")
    assert {split for _, split in rows_of(evaluated, labels, video_root=str(tmp_path / "videos")).values()} == {"val"}


def test_a_kinetics_csv_without_its_header(tmp_path: Path) -> None:
    lines = []
    for number in range(8):
        name = f"0347ZoDXyP{number}"
        label = ("abseiling", "air drumming")[number % 2]
        touch(tmp_path / f"{name}_000095_000105.mp4")
        lines.append(f"{label},{name},95,105,{'train' if number < 6 else 'val'}")
    (tmp_path / "all.csv").write_text("\n".join(lines) + "\n")
    rows = rows_of(tmp_path / "all.csv")
    assert rows["0347ZoDXyP0_000095_000105.mp4"] == ("abseiling", "train")
    assert rows["0347ZoDXyP7_000095_000105.mp4"] == ("air drumming", "val")


@pytest.mark.parametrize(("name", "between"), [("list.txt", " "), ("list.csv", ","), ("list.csv", " ")])
def test_paths_and_numbers(tmp_path: Path, name: str, between: str) -> None:
    for number in range(8):
        touch(tmp_path / "videos" / f"a {number}.mp4")
    (tmp_path / name).write_text("".join(f"videos/a {n}.mp4{between}{n % 2}\n" for n in range(8)))
    rows = rows_of(tmp_path / name)
    assert {key: label for key, (label, _) in rows.items()} == {f"a {n}.mp4": str(n % 2) for n in range(8)}


def contradicting(tmp_path: Path) -> Path:
    for label in ("jump", "run"):
        for number in range(4):
            touch(tmp_path / label / f"{label}{number}.mp4")
    path = tmp_path / "trainlist.txt"
    pairs = [("jump", 0), ("jump", 0), ("jump", 1), ("jump", 1), ("run", 1), ("run", 1), ("run", 0), ("run", 0)]
    path.write_text("".join(f"{label}/{label}{i % 4}.mp4 {number}\n" for i, (label, number) in enumerate(pairs)))
    return path


def test_folders_and_numbers_that_contradict_each_other_are_refused_until_one_is_chosen(tmp_path: Path) -> None:
    path = contradicting(tmp_path)
    with pytest.raises(UsageError, match=r"jump/ with 0 and jump/ with 1.*--list-labels folder or number"):
        rows_of(path)
    assert rows_of(path, list_labels="folder")["jump2.mp4"][0] == "jump"
    assert rows_of(path, list_labels="number")["jump2.mp4"][0] == "1"


def test_charades_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "Charades_v1_train.csv").write_text(
        "id,subject,scene,actions,length\n46GP8,HR43,Kitchen,c092 11 21,24\n"
    )
    with pytest.raises(UsageError, match=r"Charades, whose videos have several labels.*Read are"):
        rows_of(tmp_path / "Charades_v1_train.csv")


def test_videos_that_lie_elsewhere_are_told_of_with_the_flag(tmp_path: Path) -> None:
    touch(tmp_path / "lists" / "other.mp4")
    (tmp_path / "lists" / "trainlist01.txt").write_text("Archery/v_Archery_g08_c01.avi 1\nBow/v_Bow_g01_c01.avi 2\n")
    with pytest.raises(UsageError, match=r"none of the 2 videos .* --video-root FOLDER"):
        rows_of(tmp_path / "lists" / "trainlist01.txt")
    (tmp_path / "lists" / "other.mp4").unlink()
    with pytest.raises(UsageError, match="--video-root FOLDER"):
        rows_of(tmp_path / "lists" / "trainlist01.txt")


def test_split_folders_beside_others_are_refused(tmp_path: Path) -> None:
    for top in ("train/run", "train/jump", "val/run", "val/jump", "unlabeled/x"):
        touch(tmp_path / top / f"{top.replace('/', '_')}.mp4")
    with pytest.raises(UsageError, match=r"train/, val/ with folders below, beside unlabeled/: .*--source"):
        rows_of(tmp_path)


ODD = ["run", "run ", " run", "caf\u00e9", "cafe\u0301", 1, 1.0, "1", "1.0"]


@pytest.mark.parametrize("extension", ["jsonl", "parquet", "csv"])
def test_one_label_however_it_is_written(tmp_path: Path, extension: str) -> None:
    labels = [label for label in ODD for _ in range(2)]
    for number in range(len(labels)):
        touch(tmp_path / f"{number}.mp4")
    rows = [{"uri": f"{number}.mp4", "label": label} for number, label in enumerate(labels)]
    path = tmp_path / f"table.{extension}"
    write(path, rows)
    assert {label for label, _ in rows_of(path).values()} == {"run", "café", "1"}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".csv":
            path.write_text("uri,label\n" + "".join(f"{row['uri']},{row['label']}\n" for row in rows))
        case ".parquet":
            text = [{**row, "label": str(row["label"])} for row in rows]
            pq.write_table(pa.Table.from_pylist(text), path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"uri": "0.mp4"}, "no label"),
        ({"uri": "0.mp4", "label": None}, "no label"),
        ({"uri": "0.mp4", "label": float("nan")}, "no label"),
        ({"uri": "0.mp4", "label": "  "}, "no label"),
        ({"uri": "0.mp4", "label": ["a", "b"]}, r"'label' is \['a', 'b'\]"),
        ({"label": "run"}, "uri must be text"),
    ],
)
def test_a_row_that_lacks_something_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    touch(tmp_path / "0.mp4")
    path = tmp_path / "table.jsonl"
    write(path, [{"uri": "0.mp4", "label": "jump"}, row])
    with pytest.raises(UsageError, match=rf"row 2 of .*table\.jsonl.*{message}"):
        rows_of(path)
