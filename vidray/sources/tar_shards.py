"""Lists the videos in a tar file: from its headers alone.

A member is known by its name, which is never opened as a path. What a tar file says is not trusted: any damage ends its
listing, with a row of the tar file's own, beside those of the members before it.
"""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from vidray.errors import RunError, UsageError, VideoError
from vidray.sources import sidecars
from vidray.sources.patterns import FileFilter
from vidray.sources.rows import RowCollector, Span, spell, video_of
from vidray.sources.sidecars import ShardSidecars, SidecarTable
from vidray.sources.tar_file import RangedFile, members
from vidray.storage.failures import describe
from vidray.storage.fetch import RangesRefusedError
from vidray.storage.location import locate
from vidray.storage.redaction import is_url, public_uri, redact
from vidray.storage.versions import version_at
from vidray.types import Status, TarMember, VideoRef

TAR = ".tar"
TAR_URI = r"(?i)\.tar$|^https?://[^?#]*\.tar\?[^#]*$"
"""URIs of tar files."""

_MEMBER_OF = re.compile(r"(?i)\.tar(?:\?[^#]*)?(?=#)")
_AGAIN = "of a name that comes again in its tar file"


@dataclass(frozen=True, kw_only=True)
class _Index:
    """What a tar file holds, as far as it could be read."""

    videos: dict[str, VideoRef] = field(default_factory=dict)
    """By the name of the member; of those with one name the last, as for whoever unpacks it."""
    left: Counter[str] = field(default_factory=Counter)
    """Members that are no rows, by what the user may have meant by them."""
    problem: tuple[Status, str] | None = None


def index_shard(
    shard: dict[str, Any], videos: FileFilter, rows: RowCollector, said: SidecarTable | None = None
) -> None:
    """Adds a row for each member that is a video by its name, and one for the tar file itself if it is damaged, or
    cannot be read.

    Args:
        shard: the tar file's row of a listing.
        videos: what counts as a video.
        rows: gets the rows.
        said: gets what the videos' sidecars say.

    Raises:
        RunError: the store is away.
    """
    ref = video_of(shard)
    if ref.size_bytes is None and ref.etag is None:  # there is none: fetching it says why
        found = [ref]
    else:
        beside = None if said is None else ShardSidecars(said)
        try:
            index = _index(ref, videos, beside)
        except VideoError as error:
            raise RunError(f"cannot list {redact(ref.uri)} (the store is away): {error.message}") from error
        found = list(index.videos.values())
        if index.problem is not None:
            found.append(_member(ref, ref.uri, 0, ref.size_bytes or 0, index.problem))
        rows.skip(list(index.left.elements()))
        if said is not None and beside is not None:
            said.add({video.uri: values for name, video in index.videos.items() if (values := beside.of(name))})
    _add(found, rows, label=shard["label"], span=(shard["start_seconds"], shard["end_seconds"]))


def add_member(uri: str, rows: RowCollector) -> bool:
    """Adds the row of one member, if a URI names one.

    Raises:
        UsageError: the tar file cannot be read.
    """
    try:
        video = video_at(uri)
    except VideoError as error:
        raise UsageError(f"cannot list {redact(uri)!r}: {error.status}: {error.message}") from error
    if video.tar_member is None:
        return False
    _add([video], rows)
    return True


def _add(found: list[VideoRef], rows: RowCollector, *, label: str | None = None, span: Span = (None, None)) -> None:
    rows.add(
        [video.uri for video in found],
        [(video.size_bytes, video.etag) for video in found],
        paths=[video.path for video in found],
        labels=[label] * len(found),
        spans=[span] * len(found),
        tar_members=[asdict(video.tar_member) if video.tar_member else None for video in found],
    )


def is_tar_uri(uri: str) -> bool:
    """True for the URI of a tar file."""
    return re.search(TAR_URI, uri) is not None


def video_at(uri: str, *, etag: str | None = None) -> VideoRef:
    """The video that a URI names: an object, or a member of a tar file if there is one of this name.

    Args:
        uri: as a row has it, or with what signs it.
        etag: the version that is wanted; None: any.

    Raises:
        VideoError: a tar file of this name cannot be read.
    """
    for found in _MEMBER_OF.finditer(uri):
        shard, name = uri[: found.end()], uri[found.end() + 1 :]
        try:
            version = version_at(locate(shard))
        except UsageError:
            raise
        except Exception as error:
            raise VideoError(Status.FETCH_FAILED, describe(error)) from error
        if version is not None and version[0] is not None:
            ref = _shard_ref(shard, version[0], etag or version[1])
            index = _index(ref, _Named(f"{ref.uri}#{name}", ref), None)
            for video in index.videos.values():
                return video
            if index.problem is not None:
                raise VideoError(*index.problem)
    return VideoRef(uri=uri, etag=etag)


def _shard_ref(uri: str, size_bytes: int, etag: str | None) -> VideoRef:
    if is_url(uri) and (public := public_uri(uri)) != uri:
        return VideoRef(uri=public, path=uri.encode(), size_bytes=size_bytes, etag=etag)
    return VideoRef(uri=locate(uri).uri, size_bytes=size_bytes, etag=etag)


class _Named:
    """Keeps the member with one URI."""

    def __init__(self, uri: str, shard: VideoRef) -> None:
        self._uri, self._shard = uri, shard

    def keeps(self, path: str) -> bool:
        return _uri(self._shard, path) == self._uri

    def enters(self, path: str) -> bool:
        return True

    def kind_left(self, path: str) -> str | None:
        return None


def _index(ref: VideoRef, videos: FileFilter, beside: ShardSidecars | None) -> _Index:
    index, problem = _Index(), None
    try:
        for name, video in _videos(ref, videos, beside, index.left):
            index.left[_AGAIN] += name in index.videos
            index.videos[name] = video
    except UsageError:
        raise
    except VideoError as error:
        if error.is_outage:  # there is no partial listing
            raise
        problem = error.status, error.message
    except RangesRefusedError as error:
        problem = Status.UNSUPPORTED, f"tar files need a store that gives parts of objects: {error}"
    except Exception as error:  # tarfile raises much besides its own errors for bytes that make no sense
        problem = Status.CORRUPT, f"damaged tar file, members may be missing: {error or type(error).__name__}"
    return _Index(videos=index.videos, left=index.left + (beside.left if beside else Counter()), problem=problem)


def _videos(
    ref: VideoRef, videos: FileFilter, beside: ShardSidecars | None, left: Counter[str]
) -> Iterator[tuple[str, VideoRef]]:
    file = RangedFile(ref)
    for info in members(file):
        if info.isdir():
            continue
        if videos.keeps(info.name):
            yield info.name, _member(ref, _uri(ref, info.name), info.offset_data, info.size, _why_not(info, ref))
        elif info.name.lower().endswith(sidecars.ENDINGS):
            if beside is not None:
                beside.add(info, file)
        elif (kind := videos.kind_left(info.name)) is not None:
            left[kind] += 1


def _uri(shard: VideoRef, name: str) -> str:
    return f"{shard.uri}#{spell(name)[0]}"


def _member(shard: VideoRef, uri: str, offset: int, num_bytes: int, problem: tuple[Status, str] | None) -> VideoRef:
    status, error = problem or (None, None)
    member = TarMember(shard=shard.uri, offset=offset, shard_bytes=shard.size_bytes or 0, status=status, error=error)
    return VideoRef(uri=uri, size_bytes=num_bytes, etag=shard.etag, path=shard.path, tar_member=member)


def _why_not(info: tarfile.TarInfo, shard: VideoRef) -> tuple[Status, str] | None:
    if info.issparse() or not info.isreg():
        return Status.UNSUPPORTED, "a link, a sparse file or something else than a plain file in a tar file"
    missing = info.offset_data + info.size - (shard.size_bytes or 0)
    if missing > 0:
        return Status.CORRUPT, f"the tar file ends within it, {missing} bytes early"
    return None
