"""Lists sources (folders, globs, single objects, manifest files): one row per video, sorted, none twice."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial, reduce

import pyarrow as pa
import pyarrow.compute as pc

from vidray.errors import RunError, UsageError
from vidray.sources.manifest_file import ManifestRecord, is_manifest, read_manifest
from vidray.sources.patterns import VIDEO_EXTENSIONS, FileFilter, GlobMatches, VideosOnly, expand_ranges
from vidray.sources.rows import MANIFEST_SCHEMA, RowCollector, spawn_lookups, spell
from vidray.sources.scratch import Scratch, scratch
from vidray.sources.sidecars import SidecarTable
from vidray.sources.tar_shards import TAR, TAR_URI, add_member, index_shard
from vidray.sources.task_pool import TaskPool
from vidray.sources.walk import Walk
from vidray.sources.walk_fsspec import FsspecWalk
from vidray.sources.walk_local import LocalWalk
from vidray.sources.walk_s3 import S3Walk
from vidray.storage.failures import Failure, classify, describe
from vidray.storage.location import Location, locate, split_bucket
from vidray.storage.redaction import public_uri, redact
from vidray.storage.retry import raise_run_error, with_retries
from vidray.storage.versions import version_at

__all__ = ["MANIFEST_SCHEMA", "VIDEO_EXTENSIONS", "list_folder", "list_records", "list_sources", "stream_sources"]

_NUM_THREADS = 16
_RECORDS_PER_STEP = 1_000
_MAX_TASKS_WAITING = 1_000
"""Of a manifest: it may name more objects than there is memory for."""
_WILDCARD = re.compile(r"[*?\[]")
_WALKS: dict[str, type[Walk]] = {"local": LocalWalk, "s3": S3Walk}
"""Which walk lists the files below a folder of each kind of location; `FsspecWalk` does for all others."""

_Start = Callable[[RowCollector, TaskPool], str]
"""Spawns the tasks of a listing; returns what is looked for, in words."""


def list_sources(
    sources: Sequence[str],
    *,
    extensions: Collection[str] = (),
    left: Counter[str] | None = None,
    sidecars: SidecarTable | None = None,
    num_threads: int = _NUM_THREADS,
    on_progress: Callable[[int], None] | None = None,
) -> pa.Table:
    """Lists videos.

    Args:
        sources: each one of: a folder (all videos at any depth, by ``VIDEO_EXTENSIONS``; hidden names are left out), a
            glob (``*``, ``?``, ``[...]`` within a name, ``**`` for any number of folders; every file that matches),
            numbered objects (``{000..099}``; those that are missing are rows, too), one object, or a manifest
            (``.csv``, ``.jsonl``, ``.ndjson``, ``.parquet``) with a column ``uri`` and, if there, ``size_bytes``,
            ``etag``, ``label``, ``start_seconds`` and ``end_seconds``. Relative URIs in it start at its folder.
        extensions: such as ``.bin``: count as videos in a folder too.
        left: gets the number of files that lie in the folders and do not count as videos, by extension.
        sidecars: gets what lies beside the videos in tar files.
        num_threads: requests at once.
        on_progress: called now and then with the number of rows found so far.

    Of whatever is found, a ``.tar`` stands for the videos in it (`vidray.sources.tar_shards`).

    Returns:
        Rows of ``MANIFEST_SCHEMA``, sorted by ``uri`` and span, each once (with a label, if any source has one). Local
        files have plain absolute paths. Objects of a manifest that do not exist have neither size nor etag.

    Raises:
        UsageError: a source does not exist, holds nothing, or cannot be listed as asked.
        RunError: a store failed while it was listed. There is no partial listing.
    """
    listed = stream_sources(
        sources,
        extensions=extensions,
        left=left,
        sidecars=sidecars,
        num_threads=num_threads,
        on_progress=on_progress,
    )
    return pa.concat_tables(listed)


def stream_sources(
    sources: Sequence[str],
    *,
    extensions: Collection[str] = (),
    left: Counter[str] | None = None,
    sidecars: SidecarTable | None = None,
    num_threads: int = _NUM_THREADS,
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[pa.Table]:
    """The same rows in tables of bounded size, in order; takes and raises what `list_sources` does."""
    listings = [_listing(source, VideosOnly([*extensions, TAR])) for source in sources]
    run = partial(_run, left=left, num_threads=num_threads, on_progress=on_progress)
    with scratch() as work:
        run(work, "found", listings)
        for source in sources:
            _check_some_there(source, work)
        shards = pa.concat_tables([MANIFEST_SCHEMA.empty_table(), *_one_each(work.read(_sorted("found", _IS_SHARD)))])
        if not shards.num_rows:
            yield from _one_each(work.read(_sorted("found")))
            return
        num_others = work.db.execute(f"SELECT count(*) FROM found WHERE NOT ({_IS_SHARD})").fetchall()[0][0]
        start = partial(_start_shards, shards, VideosOnly(extensions), sidecars)
        run(work, "members", [(", ".join(sources), start)], may_be_empty=num_others > 0)
        _check_no_clash(work)
        work.db.execute(
            f"CREATE VIEW videos AS SELECT * FROM found WHERE NOT ({_IS_SHARD}) UNION ALL SELECT * FROM members"
        )
        yield from _one_each(work.read(_sorted("videos")))


_IS_SHARD = f"tar_member IS NULL AND regexp_matches(uri, '{TAR_URI}')"


def _listing(source: str, videos: FileFilter) -> tuple[str, _Start]:
    numbered = expand_ranges(source)
    if numbered == [source]:
        return source, partial(_start, locate(source), videos, source.endswith("/"))
    places = [locate(one) for one in numbered]
    if is_manifest(places[0]) or "*" in source:
        raise UsageError(f"got {redact(source)!r}; allowed in a range of numbers are names of videos and tar files")
    return source, partial(_start_numbered, places)


def _start_numbered(places: Sequence[Location], rows: RowCollector, tasks: TaskPool) -> str:
    spawn_lookups(places, rows, tasks)
    return "objects of these numbers"


def _check_some_there(source: str, work: Scratch) -> None:
    """Raises UsageError if a range of numbers was meant for other names: else each would be a missing video."""
    numbered = expand_ranges(source)
    if numbered == [source]:
        return
    uris = [public_uri(locate(one).uri) for one in numbered]
    work.db.register("numbered", pa.table({"uri": pa.array(uris, pa.string())}))
    there = "SELECT count(*) FROM found SEMI JOIN numbered USING (uri) WHERE size_bytes IS NOT NULL OR etag IS NOT NULL"
    if work.db.execute(there).fetchall() == [(0,)]:
        raise UsageError(
            f"nothing found in {redact(source)!r}: none of these {len(uris):,} objects is there, such as {uris[0]}"
        )


def _start_shards(
    shards: pa.Table, videos: FileFilter, sidecars: SidecarTable | None, rows: RowCollector, tasks: TaskPool
) -> str:
    for shard in shards.to_pylist():
        tasks.spawn(index_shard, shard, videos, rows, sidecars)
    return f"members of tar files with {videos}"


def _check_no_clash(work: Scratch) -> None:
    """Raises UsageError if an object is called what a member of a tar file is."""
    clashing = f"SELECT uri FROM found SEMI JOIN members USING (uri) WHERE tar_member IS NULL AND NOT ({_IS_SHARD})"
    for (uri,) in work.db.execute(f"{clashing} LIMIT 1").fetchall():
        uri = redact(uri)
        raise UsageError(f"two videos have the same URI {uri!r}, an object and a member of a tar file. Rename one")


def list_folder(folder: Location, *, extensions: Collection[str] = ()) -> pa.Table:
    """All files below a folder that are videos by name, or have one of the extensions: tar files too are one row each.
    Returns and raises what `list_sources` does."""
    return _list(folder.uri, partial(_start_folder, folder, VideosOnly(extensions)))


def list_records(manifest: Location, records: Iterator[ManifestRecord]) -> pa.Table:
    """What the records of a manifest name; returns and raises what `list_sources` does."""
    return _list(manifest.uri, partial(_start_records, records))


def _list(source: str, start: _Start) -> pa.Table:
    with scratch() as work:
        _run(work, "found", [(source, start)])
        return pa.concat_tables(_one_each(work.read(_sorted("found"))))


def _run(
    work: Scratch,
    name: str,
    listings: Sequence[tuple[str, _Start]],
    *,
    left: Counter[str] | None = None,
    num_threads: int = _NUM_THREADS,
    on_progress: Callable[[int], None] | None = None,
    may_be_empty: bool = False,
) -> None:
    """Runs listings one after the other into the view ``name``. Each comes with the name that messages give it."""
    with work.writer(name, MANIFEST_SCHEMA) as write:
        rows = RowCollector(write)
        report = (lambda: on_progress(rows.num_rows)) if on_progress else (lambda: None)
        for source, start in listings:
            _collect(source, start, rows, num_threads, report, may_be_empty=may_be_empty)
        rows.flush()
    if left is not None:
        left.update(rows.left)


def _collect(
    source: str,
    start: _Start,
    rows: RowCollector,
    num_threads: int,
    report: Callable[[], None],
    *,
    may_be_empty: bool,
) -> None:
    num_rows, num_skipped = rows.num_rows, rows.num_skipped
    try:
        with TaskPool(num_threads, on_step=report) as tasks:
            looked_for = start(rows, tasks)
            tasks.join()
            report()
    except (UsageError, RunError):
        raise
    except Exception as error:
        if classify(error) in (Failure.NOT_FOUND, Failure.ACCESS_DENIED):
            raise UsageError(f"cannot list {redact(source)!r}: {describe(error)}") from error
        raise_run_error(error, f"cannot list {source!r}")
    if not may_be_empty and rows.num_rows == num_rows:
        num_others = rows.num_skipped - num_skipped
        kinds = ", ".join(f"{count} {kind}" for kind, count in rows.left.most_common(5))
        others = f"; {num_others} other files are there{f' ({kinds})' if kinds else ''}" if num_others else ""
        raise UsageError(f"nothing found in {redact(source)!r}: looked for {looked_for}{others}")


def _start(place: Location, videos: FileFilter, is_folder: bool, rows: RowCollector, tasks: TaskPool) -> str:
    if _is_glob(place):
        return _start_glob(place, rows, tasks)
    if is_manifest(place):
        return _start_records(read_manifest(place), rows, tasks)
    version = None if is_folder else version_at(place)
    if version is None and not is_folder and add_member(place.uri, rows):
        return "a member of a tar file"
    if version is None:
        return f"an object of this name, or {_start_folder(place, videos, rows, tasks)}"
    uri, path = spell(place.uri)
    rows.add([uri], [version], paths=[path])
    return "an object of this name"


def _start_folder(folder: Location, videos: FileFilter, rows: RowCollector, tasks: TaskPool) -> str:
    _walk(folder, videos, rows, tasks)
    return f"a folder with {videos}"


def _start_records(records: Iterator[ManifestRecord], rows: RowCollector, tasks: TaskPool) -> str:
    while chunk := list(itertools.islice(records, _RECORDS_PER_STEP)):
        known = [record for record in chunk if record.etag is not None]
        unknown = [record for record in chunk if record.etag is None]
        rows.add(
            [record.place.uri for record in known],
            [(record.size_bytes, record.etag) for record in known],
            labels=[record.label for record in known],
            spans=[record.span for record in known],
        )
        spawn_lookups(
            [record.place for record in unknown],
            rows,
            tasks,
            labels=[record.label for record in unknown],
            spans=[record.span for record in unknown],
        )
        tasks.join(leaving=_MAX_TASKS_WAITING)
    return "rows of a manifest"


def _start_glob(place: Location, rows: RowCollector, tasks: TaskPool) -> str:
    wildcard = _WILDCARD.search(place.path) if place.kind != "http" else re.search(r"\*", place.path)
    assert wildcard is not None
    base, _, name_start = place.path[: wildcard.start()].rpartition("/")
    try:
        keep = GlobMatches(place.path[len(base) + 1 :])
    except ValueError as error:
        raise UsageError(f"cannot understand the pattern {place.uri!r}: {error}") from error
    _walk(place.at(base or "/"), keep, rows, tasks, name_start=name_start)
    return "files that match this pattern (`**` stands for any number of folders)"


def _walk(folder: Location, keep: FileFilter, rows: RowCollector, tasks: TaskPool, *, name_start: str = "") -> None:
    if folder.kind == "http" and not folder.path.endswith("/"):  # links of a page start after its last slash
        folder = folder.at(folder.path + "/")
    walk = _WALKS.get(folder.kind, FsspecWalk)
    walk(folder=folder, keep=keep, rows=rows, tasks=tasks, name_start=name_start).start()


def _is_glob(place: Location) -> bool:
    """True if the path has wildcards, and no object or folder has exactly this name."""
    if place.kind not in ("local", "http") and _WILDCARD.search(split_bucket(place.path.lstrip("/"))[0]):
        raise UsageError(f"{place.uri!r} has a wildcard in the bucket's name; allowed are wildcards after it")
    if place.kind == "http":  # there, ? starts a query
        return "*" in place.path
    return _WILDCARD.search(place.path) is not None and not _exists(place)


def _exists(place: Location) -> bool:
    if place.kind == "local":
        return os.path.lexists(place.path)
    if place.kind != "s3":
        return _exists_elsewhere(place)
    bucket, key = split_bucket(place.path)
    if version_at(place) is not None:
        return True
    options = {"Bucket": bucket, "Prefix": f"{key}/", "MaxKeys": 1}
    page = with_retries(lambda: place.fs.call_s3("list_objects_v2", **options), what=place.uri)
    return bool(page.get("Contents"))


def _exists_elsewhere(place: Location) -> bool:
    """Not with fsspec's ``exists``, which takes an outage for an answer."""
    try:
        with_retries(lambda: place.fs.info(place.path), what=place.uri)
    except Exception as error:
        if classify(error) is Failure.NOT_FOUND:
            return False
        raise
    return True


def _sorted(name: str, condition: str = "true") -> str:
    """SQL for rows of a view in order. Of those of one video or span, the first is one with a label, if any has one,
    then one with an etag."""
    return f"""
SELECT * EXCLUDE (place) FROM {name} WHERE {condition}
ORDER BY uri, coalesce(start_seconds, 0), coalesce(end_seconds, 'infinity'), label IS NULL, etag IS NULL, place
"""


def _one_each(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The first row of each URI and span, of tables that are sorted by them."""
    last = MANIFEST_SCHEMA.empty_table()
    for table in tables:
        rows = pa.concat_tables([last, table.cast(MANIFEST_SCHEMA)]).combine_chunks()
        columns = rows["uri"], pc.fill_null(rows["start_seconds"], 0.0), pc.fill_null(rows["end_seconds"], math.inf)
        is_other = reduce(pc.or_, [pc.not_equal(column[1:], column[:-1]) for column in columns])
        _check_spelling(rows)
        first = rows.slice(0, 1 - last.num_rows)  # of the first table
        yield pa.concat_tables([first, rows.slice(1).filter(is_other)])
        last = rows.slice(rows.num_rows - 1)


def _check_spelling(rows: pa.Table) -> None:
    """A name with a byte that is not UTF-8 can look like one with a backslash in it: two files, one URI."""
    if rows["path"].null_count == rows.num_rows:
        return
    uris, raw = rows["uri"], pc.fill_null(rows["path"], b"")
    is_other = pc.and_(pc.not_equal(raw[1:], raw[:-1]), pc.starts_with(uris[1:], "/"))  # URLs may differ in signature
    is_twice = pc.and_(pc.equal(uris[1:], uris[:-1]), is_other)
    if pc.any(is_twice).as_py():
        uri = uris[1:].filter(is_twice)[0].as_py()
        raise UsageError(f"two files have the same URI {uri!r}: one of them has bytes that are not UTF-8. Rename it")
