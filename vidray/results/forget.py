"""``vidray forget``: takes videos out of an output for good, as a request for erasure asks. The one exception to "a
part never changes": each object that tells of one of them is replaced, whole, under the lease.

The order makes it resumable. Which keys are theirs is known from the plans alone, so plans come last: until then the
same command finds all of it again. Parts come before keys, so that a run which starts after a crash takes the video for
done, and never scores it a second time beside a row that is still there.

    merged copies (a cache) ─> parts ─> keys ─> texts, reports, profiles ─> plans
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tyro

from vidray.errors import RunError
from vidray.flags import require, shown_as
from vidray.results import merged
from vidray.results.comparison import compare_runs, write_profile
from vidray.results.naming import Naming
from vidray.results.profile import FILE as PROFILE_FILE
from vidray.scoring import output, verdict
from vidray.scoring.collector import seal_part
from vidray.scoring.history import KEYS_FOLDER, keys_of_videos, run_file, run_files
from vidray.scoring.plan import Plan, load_plan
from vidray.scoring.plan_rows import kept_columns
from vidray.sources.manifest_file import read_manifest
from vidray.storage.arrow_file import arrow_file
from vidray.storage.failures import describe
from vidray.storage.lease import Lease
from vidray.storage.location import locate
from vidray.storage.store import Store

_OURS = ("predictions", "_runs", verdict.FOLDER, "_lease", KEYS_FOLDER, merged.FOLDER, "_reports")
_WITH_TEXTS = ("_runs/", f"{verdict.FOLDER}/")


@dataclass(frozen=True, kw_only=True)
class ForgetConfig:
    """Take videos out of an output for good, as a request for erasure asks: their rows, keys, plans, merged copies, and
    reports that show them. All else stays. May be interrupted: the same command goes on."""

    output: Annotated[str, shown_as("URI")]
    """The folder that vidray score wrote to."""
    uri: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, shown_as("URI")] = ()
    """A video to forget, with all its spans and versions. May be repeated."""
    manifest: Annotated[str | None, shown_as("FILE")] = None
    """A .csv, .jsonl or .parquet with a column uri: videos to forget."""
    dry_run: bool = False
    """Only say which objects would be replaced or deleted."""

    def __post_init__(self) -> None:
        require(bool(self.uri or self.manifest), "--uri", "nothing", "a video to forget, or --manifest FILE")


@dataclass(kw_only=True)
class Forgotten:
    """What was taken out of an output, or would be."""

    output: str
    num_rows: int = 0
    missing: list[str] = field(default_factory=list)
    """URIs that the output holds nothing of."""
    replaced: list[str] = field(default_factory=list)
    """Objects, by path."""
    deleted: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    """Files in the folder that vidray score did not write, and that were not looked at."""


def forget(config: ForgetConfig) -> Forgotten:
    """Do it, or with ``dry_run`` say what would be done.

    Raises:
        UsageError: the manifest cannot be read.
        RunError: there is no run in the output, something in it is damaged, another run works on it, or a store failed.
    """
    naming = Naming(_uris(config))
    store = Store(config.output)
    if config.dry_run:
        return Cleaning(store, naming, before_write=None).run()
    with Lease(store).held() as lease:
        return Cleaning(store, naming, before_write=lease.check).run()


def _uris(config: ForgetConfig) -> list[str]:
    uris = list(config.uri)
    if config.manifest is not None:
        uris += [record.place.uri for record in read_manifest(locate(config.manifest))]
    return uris


class Cleaning:
    """One command. ``before_write``: called before every change; None: nothing is changed."""

    def __init__(self, store: Store, naming: Naming, before_write: Callable[[], None] | None) -> None:
        self._store, self._naming, self._before_write = store, naming, before_write
        self._done = Forgotten(output=store.uri)

    def run(self) -> Forgotten:
        files = run_files(self._store)
        if not files:
            raise RunError(f"{self._store.uri} holds no run of vidray score")
        self._refuse_without_plan(files)
        plans = {run: plan for run in sorted(files) if (plan := self._plan_with_some(run)) is not None}
        if plans:
            self._delete_all(merged.FOLDER)
            for run, plan in plans.items():
                self._forget_in_parts(run, plan)
            self._forget_keys(plans, files)
        self._forget_in_texts()
        for run, plan in plans.items():
            if PROFILE_FILE in files[run]:
                self._delete(run_file(run, PROFILE_FILE))
            self._forget_in_plan(run, plan)
        for run in plans:
            if PROFILE_FILE in files[run] and self._before_write is not None:
                write_profile(compare_runs(self._store.uri, run))
        found = {uri for plan in plans.values() for uri in pc.unique(self._theirs(plan)["uri"]).to_pylist()}
        self._done.missing = self._naming.not_among(found)
        self._done.others = [path for path in self._store.list() if path.partition("/")[0] not in _OURS]
        return self._done

    def _refuse_without_plan(self, files: dict[str, set[str]]) -> None:
        planned = {run for run, names in files.items() if "plan.parquet" in names}
        if lost := sorted({*files, *output.count_parts(self._store)} - planned):
            raise RunError(
                f"run {lost[0]} of {self._store.uri} has no plan.parquet, so nothing says whose rows it holds"
            )

    def _plan_with_some(self, run: str) -> Plan | None:
        """A run's plan, if a video that is to be forgotten is in it or among its sources."""
        path = run_file(run, "plan.parquet")
        plan = self._decoded(path, lambda: load_plan(self._store, run))
        is_source = self._naming.without(list(plan.header.source)) != list(plan.header.source)
        return plan if is_source or self._theirs(plan).num_rows else None

    def _theirs(self, plan: Plan) -> pa.Table:
        found = (table.filter(self._naming.are_in(table["uri"])) for table in plan.rows.tables())
        return pa.concat_tables([plan.rows.schema.empty_table(), *found])

    def _forget_in_parts(self, run: str, plan: Plan) -> None:
        there = output.sealed_shards(self._store, run)
        rows = self._theirs(plan)[output.ROW].to_numpy()
        for shard in sorted(set((rows // plan.header.rows_per_part).tolist())):
            if shard in there:
                self._done.num_rows += self._without_rows(output.part_path(run, shard), self._keep_row)
            elif pc.all(self._naming.are_in(plan.rows_of(shard)["uri"])).as_py():
                self._seal_empty(run, plan, shard)

    def _keep_row(self, table: pa.Table) -> pa.ChunkedArray:
        return pc.invert(self._naming.are_in(table["uri"]))

    def _seal_empty(self, run: str, plan: Plan, shard: int) -> None:
        """No row of this part is left to come, and a part that is not there would look lost."""
        self._done.replaced.append(output.part_path(run, shard))
        if self._before_write is None:
            return
        self._before_write()
        kept = [plan.rows.schema.field(name) for name in kept_columns(plan.rows.schema)]
        seal_part(self._store, run, shard, pa.schema([*output.PREDICTION_SCHEMA, *kept]).empty_table())

    def _forget_keys(self, plans: dict[str, Plan], files: dict[str, set[str]]) -> None:
        keys = [keys_of_videos(self._theirs(plan), result_key=plan.header.result_key) for plan in plans.values()]
        gone = pa.chunked_array([chunk for column in keys for chunk in column.chunks], pa.binary()).combine_chunks()

        def keep(table: pa.Table) -> pa.ChunkedArray:
            return pc.invert(pc.is_in(table["key"], gone))

        paths = [run_file(run, "keys.parquet") for run in plans if "keys.parquet" in files[run]]
        for path in [*paths, *self._store.list(KEYS_FOLDER)]:
            self._without_rows(path, keep)

    def _without_rows(self, path: str, keep: Callable[[pa.Table], pa.ChunkedArray]) -> int:
        """Replace a Parquet object by one without some rows, if there are such; returns how many."""
        table = self._decoded(path, lambda: pq.read_table(arrow_file(self._store.read(path)), partitioning=None))
        left = table.filter(keep(table))
        if left.num_rows == table.num_rows:
            return 0
        metadata = output.parquet_metadata(table.schema)
        if "num_rows" in metadata:
            metadata["num_rows"] = left.num_rows
        self._replace(path, output.parquet_bytes(left.replace_schema_metadata(None), metadata))
        return table.num_rows - left.num_rows

    def _forget_in_texts(self) -> None:
        """JSON loses the names; a report, whose pictures may show the video, goes."""
        for path in self._store.list():
            if path.endswith(".html"):
                if self._naming.is_in_text(self._store.read(path).decode(errors="replace")):
                    self._delete(path)
            elif path.startswith(_WITH_TEXTS) and path.endswith(".json"):
                values = self._store.read_json(path)
                if (left := self._naming.without(values)) != values:
                    self._replace(path, json.dumps(left, indent=2, ensure_ascii=False).encode())

    def _forget_in_plan(self, run: str, plan: Plan) -> None:
        theirs = self._theirs(plan)
        header = dataclasses.replace(
            plan.header,
            source=tuple(self._naming.without(list(plan.header.source))),
            num_forgotten=plan.header.num_forgotten + theirs.num_rows,
        )
        left = (table.filter(self._keep_row(table)) for table in plan.rows.tables())
        data = output.parquet_stream(left, plan.rows.schema, dataclasses.asdict(header))
        self._replace(run_file(run, "plan.parquet"), data)

    def _decoded(self, path: str, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except (pa.ArrowException, KeyError, ValueError, TypeError) as error:
            raise RunError(f"{self._store.uri_for(path)} cannot be read: {describe(error)}") from error

    def _replace(self, path: str, data: bytes) -> None:
        self._done.replaced.append(path)
        if self._before_write is not None:
            self._before_write()
            self._store.replace(path, data)

    def _delete(self, path: str) -> None:
        self._done.deleted.append(path)
        if self._before_write is not None:
            self._before_write()
            self._store.delete(path)

    def _delete_all(self, folder: str) -> None:
        """Lists first: a file that no list names is not read."""
        for path in sorted(self._store.list(folder), key=lambda path: not path.endswith(".json")):
            self._delete(path)


def format_forgotten(done: Forgotten, *, dry_run: bool) -> Iterator[str]:
    """Lines for the screen."""
    would = "would be " if dry_run else ""
    for path in done.replaced if dry_run else ():
        yield f"would replace {path}"
    for path in done.deleted if dry_run else ():
        yield f"would delete {path}"
    yield (
        f"{done.num_rows:,} rows {would}forgotten: {len(done.replaced):,} objects {would}replaced, "
        f"{len(done.deleted):,} {would}deleted"
    )
    if done.missing:
        yield f"the output holds nothing of {len(done.missing):,} of these videos, such as {done.missing[0]}"
    if done.others:
        yield f"not looked at: {len(done.others):,} files that vidray score did not write, such as {done.others[0]}"
    yield (
        "not reached: earlier versions of these objects where a bucket keeps them, logs, copies and reports elsewhere, "
        "and models that were trained on the videos"
    )
    yield "a video that is still in the sources is scored again by the next run: delete it there first"
