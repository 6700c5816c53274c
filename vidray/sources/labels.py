"""Loads labelled videos: which label each has, and whether it trains, validates or tests.

    manifest = load_labelled(LabelSource(source=("s3://bucket/ucf101",)))
    manifest.labels                 # ("ApplyEyeMakeup", "ApplyLipstick", ...), sorted
    manifest.indices("val")         # rows of manifest.table that validate

`label_sources` parses each kind of source. What cannot be trained with is refused here, before any GPU is asked for.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vidray.errors import UsageError
from vidray.sources.label_sources import LabelledRow, read_source
from vidray.sources.rows import TAR_MEMBER
from vidray.sources.signed_urls import without_secrets
from vidray.sources.splits import SPLITS, UCF101_GROUP, choose_validation, compile_group_regex, group_of
from vidray.storage.arrow_file import arrow_file
from vidray.storage.location import locate

LABELLED_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("path", pa.binary()),
        ("size_bytes", pa.int64()),
        ("etag", pa.string()),
        ("label", pa.string()),
        ("label_id", pa.int32()),
        ("split", pa.string()),
        ("group", pa.string()),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("tar_member", TAR_MEMBER),
    ]
)
"""One row per labelled clip. ``path``, ``tar_member``: see `vidray.sources.rows.MANIFEST_SCHEMA`. ``label_id``: the
label's place among the labels. ``split``: train, val or test. Rows of one ``group`` are never on two sides of a split.
``start_seconds``, ``end_seconds``: the part of the file that the label is about; null: from its start, to its end."""

_LABELS_KEY = b"vidray.labels"
"""Of the Parquet file's metadata. Runs of earlier versions left files with this key."""


@dataclass(frozen=True, kw_only=True)
class LabelSource:
    """Where labelled videos are, and how a validation split is made if there is none."""

    source: tuple[str, ...]
    """Each one of: a folder with a folder per label (perhaps below train/, val/, test/); a table (.csv, .jsonl,
    .parquet) with `uri` and `label`, or with `label` and `youtube_id` or `file`; a list (UCF101, HMDB51, PATH NUMBER,
    Something-Something's JSON); tar files with a label beside each video."""
    video_root: str | None = None
    """Folder of the videos that a table with `file` or `youtube_id`, or a UCF101 list, names.
    Default: the folder that the table or list is in."""
    list_labels: Literal["folder", "number"] | None = None
    """What is the label in a list of PATH NUMBER where folders and numbers contradict each other."""
    group_regex: str | None = None
    """Regular expression that finds a video's group in its URI: its first group, or the whole match without one.
    Default: UCF101's names, v_Label_gNN_cNN; other videos are groups of their own."""
    group_column: str | None = None
    """Column of the table that names the group; in tar files a key of the JSON beside a video."""
    label_key: str = "cls"
    """In tar files: what beside a video is its label: `cls`, `txt`, or a key of its JSON."""
    validation_share: float = 0.1
    """Share of the training videos that is split off where no source has a validation split."""
    seed: int = 0
    """Decides which groups are split off."""

    def __post_init__(self) -> None:
        if not self.source:
            raise UsageError("--source: got none, at least one is needed")
        if not 0 < self.validation_share < 1:
            raise UsageError(f"--validation-share: got {self.validation_share}, allowed is between 0 and 1")
        if self.group_regex is not None and self.group_column is not None:
            raise UsageError("--group-regex and --group-column both name the group: give one of them")


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledManifest:
    """Labelled videos in a fixed order."""

    table: pa.Table
    """Rows of ``LABELLED_SCHEMA``, sorted by uri and start."""
    labels: tuple[str, ...]
    """All labels; a label's place is its ``label_id``."""

    def __post_init__(self) -> None:
        if self.table.schema.names != LABELLED_SCHEMA.names:
            raise ValueError(f"columns must be {LABELLED_SCHEMA.names}, got {self.table.schema.names}")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must differ from each other")

    @property
    def num_classes(self) -> int:
        """How many labels there are."""
        return len(self.labels)

    def indices(self, split: str) -> np.ndarray:
        """(N,) int64: the rows of a split, ascending.

        Raises:
            ValueError: there is no such split.
        """
        if split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
        return np.flatnonzero(pc.equal(self.table["split"], split).to_numpy(zero_copy_only=False))

    def rows_of(self, split: str) -> pa.Table:
        """The rows of a split, in order."""
        return self.table.take(pa.array(self.indices(split)))

    def count(self, split: str) -> int:
        """Rows of a split."""
        return len(self.indices(split))

    def public(self) -> LabelledManifest:
        """The same without the signed URLs that open its videos: what may be stored."""
        return dataclasses.replace(self, table=without_secrets(self.table))

    def to_parquet(self) -> bytes:
        """A Parquet file with the table, and the labels in its metadata; equal manifests give equal bytes."""
        table = self.table.replace_schema_metadata({_LABELS_KEY: json.dumps(self.labels).encode()})
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        return sink.getvalue()

    @classmethod
    def from_parquet(cls, data: bytes) -> LabelledManifest:
        """The inverse of `to_parquet`.

        Raises:
            ValueError: these bytes are no such file.
        """
        table = pq.read_table(arrow_file(data))
        metadata = table.schema.metadata or {}
        if _LABELS_KEY not in metadata:
            raise ValueError("not a labelled manifest: the Parquet file has no labels in its metadata")
        labels = tuple(json.loads(metadata[_LABELS_KEY]))
        if "tar_member" not in table.column_names:  # an older version's
            table = table.append_column("tar_member", pa.nulls(table.num_rows, TAR_MEMBER))
        return cls(table=table.replace_schema_metadata(None).cast(LABELLED_SCHEMA), labels=labels)


def load_labelled(source: LabelSource) -> LabelledManifest:
    """What to train with: every row is in ``train``, ``val`` or ``test``, and ``val`` is never empty.

    Raises:
        UsageError: nothing is there, a label is missing or is the only one, a label has too few videos to split some
            off for validation, or a label of another split has no training video.
        RunError: a store failed while it was listed.
    """
    rows = _load_rows(source)
    rows = [row.with_split(row.split or "train") for row in rows]
    labels = sorted({row.label for row in rows if row.split == "train"})
    _check_training(rows, labels)
    if not any(row.split == "val" for row in rows):
        rows = _split_off(rows, source)
    return _manifest(rows, labels)


def load_for_evaluation(source: LabelSource, labels: Sequence[str]) -> LabelledManifest:
    """What to evaluate a model with that knows ``labels``. Nothing is split off: rows without a split are ``test``.

    Raises:
        UsageError: nothing is there, a label is missing, or it is not one of ``labels``.
        RunError: a store failed while it was listed.
    """
    rows = [row.with_split(row.split or "test") for row in _load_rows(source)]
    _check_known(rows, labels, whose="the model")
    return _manifest(rows, labels)


def load_labels(source: LabelSource) -> pa.Table:
    """What is known of videos, whatever a model knows: columns uri, start_seconds, end_seconds and label.

    Raises:
        UsageError: nothing is there, or a label is missing.
        RunError: a store failed while it was listed.
    """
    rows = _load_rows(source)
    manifest = _manifest([row.with_split("test") for row in rows], sorted({row.label for row in rows}))
    return manifest.table.select(["uri", "start_seconds", "end_seconds", "label"])


def _load_rows(source: LabelSource) -> list[LabelledRow]:
    pattern = UCF101_GROUP if source.group_regex is None else compile_group_regex(source.group_regex)
    places = [locate(one) for one in source.source]
    video_root = locate(source.video_root) if source.video_root else None
    rows = [
        row if row.group is not None else row.with_group(group_of(row.video.uri, pattern))
        for place in places
        for row in read_source(
            place,
            video_root=video_root,
            group_column=source.group_column,
            list_labels=source.list_labels,
            label_key=source.label_key,
        )
    ]
    if not rows:
        raise UsageError(f"no labelled video in {', '.join(source.source)}")
    return _without_doubles(sorted(rows, key=lambda row: row.key))


def _without_doubles(rows: list[LabelledRow]) -> list[LabelledRow]:
    """One row per clip; the same clip under two labels or in two splits is an error. ``rows`` are sorted by key."""
    kept: list[LabelledRow] = []
    for row in rows:
        if kept and kept[-1].key == row.key:
            first = kept[-1]
            if (first.label, first.split) != (row.label, row.split):
                both = " and as ".join(f"{r.label!r}{f' in {r.split}' if r.split else ''}" for r in (first, row))
                raise UsageError(f"{row.video.uri} is listed twice, as {both}")
        else:
            kept.append(row)
    return kept


def _check_training(rows: list[LabelledRow], labels: list[str]) -> None:
    counts = Counter(row.split or "" for row in rows)
    if not counts["train"]:
        raise UsageError(f"no training video among {len(rows)} rows: all are in {', '.join(sorted(counts))}")
    if len(labels) == 1:
        raise UsageError(f"all {counts['train']} training videos have the label {labels[0]!r}; at least two are needed")
    _check_known(rows, labels, whose="the training split")


def _check_known(rows: list[LabelledRow], labels: Sequence[str], *, whose: str) -> None:
    known = set(labels)
    strange = Counter((row.label, row.split) for row in rows if row.label not in known)
    if not strange:
        return
    named = ", ".join(f"{label!r} ({count} in {split})" for (label, split), count in sorted(strange.items())[:5])
    raise UsageError(
        f"{whose} does not know these labels: {named}{' ...' if len(strange) > 5 else ''}; it knows {len(known)}, "
        f"such as {', '.join(map(repr, sorted(known)[:5]))}"
    )


def _split_off(rows: list[LabelledRow], source: LabelSource) -> list[LabelledRow]:
    training = [row for row in rows if row.split == "train"]
    groups = [row.group or row.video.uri for row in training]
    chosen = choose_validation(
        [row.label for row in training], groups, fraction=source.validation_share, seed=source.seed
    )
    in_validation = {row.key for row, group in zip(training, groups, strict=True) if group in chosen}
    return [row.with_split("val") if row.key in in_validation else row for row in rows]


def _manifest(rows: list[LabelledRow], labels: Sequence[str]) -> LabelledManifest:
    ids = {label: i for i, label in enumerate(labels)}
    columns = {name: [getattr(row.video, name) for row in rows] for name in ("uri", "path", "size_bytes", "etag")}
    for name in ("label", "split", "group", "start_seconds", "end_seconds"):
        columns[name] = [getattr(row, name) for row in rows]
    columns["tar_member"] = [row.video.tar_member and dataclasses.asdict(row.video.tar_member) for row in rows]
    columns["label_id"] = [ids[row.label] for row in rows]
    arrays = [pa.array(columns[field.name], field.type) for field in LABELLED_SCHEMA]
    return LabelledManifest(table=pa.Table.from_arrays(arrays, schema=LABELLED_SCHEMA), labels=tuple(labels))
