"""Labelled videos in tar files: the label of each lies beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vidray.errors import RunError, UsageError
from vidray.sources.label_formats import label_text
from vidray.sources.manifest import list_sources
from vidray.sources.patterns import expand_ranges
from vidray.sources.rows import video_of
from vidray.sources.sidecars import SidecarTable
from vidray.sources.splits import split_of
from vidray.sources.tar_shards import is_tar_uri
from vidray.storage.location import Location
from vidray.types import Status, VideoRef


@dataclass(frozen=True, kw_only=True, slots=True)
class TarVideo:
    """A labelled video in a tar file."""

    video: VideoRef
    label: str
    split: str | None
    """Of the folder that the tar file lies in, where it is called ``train``, ``val`` or ``test``."""
    group: str | None
    """None: nothing says."""


def names_tars(place: Location) -> bool:
    """True for a tar file, a range of numbers (``{000..009}.tar``) and a pattern (``*.tar``)."""
    return is_tar_uri(place.uri) or len(expand_ranges(place.uri)) > 1


def read_tars(place: Location, *, label_key: str, group_key: str | None) -> list[TarVideo]:
    """The videos in tar files.

    Args:
        place: as `list_sources` takes it.
        label_key: ``cls``, ``txt`` or a key of the ``.json``: what beside a video is its label.
        group_key: what beside it is its group.

    Raises:
        UsageError: a tar file is missing or damaged, or a video has no label.
        RunError: a store failed.
    """
    beside = SidecarTable([label_key, *([group_key] if group_key else [])])
    listed = list_sources([place.uri], sidecars=beside).to_pylist()
    said = {values["uri"]: values for values in beside.table().to_pylist()}
    return [_labelled(row, said.get(row["uri"], {}), label_key, group_key) for row in listed]


def _labelled(row: dict[str, Any], said: dict[str, Any], label_key: str, group_key: str | None) -> TarVideo:
    video = video_of(row)
    member = video.tar_member
    if member is None:
        why = "is not there" if video.size_bytes is None and video.etag is None else "is no tar file and has no label"
        raise UsageError(f"{video.uri} {why}")
    if video.uri == member.shard:
        kind = RunError if member.status and Status(member.status).is_store_failure else UsageError
        raise kind(f"{video.uri}: {member.error}")
    if label_key not in said or said[label_key] is None:
        raise UsageError(
            f"{video.uri} has no label: beside it in the tar file there is no {_where(label_key)}. --label-key KEY "
            "says what is the label: cls, txt, or a key of the .json"
        )
    folder = member.shard.rpartition("/")[0].rpartition("/")[2]
    group = said.get(group_key) if group_key else None
    return TarVideo(
        video=video,
        label=label_text(said[label_key], video.uri),
        split=split_of(folder),
        group=None if group is None else str(group),
    )


def _where(key: str) -> str:
    return f".{key} of its name" if key in ("cls", "txt") else f".json of its name with a key {key!r}"
