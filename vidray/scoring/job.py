"""The way of a score run, from sources to ``_SUCCESS``.

lease ─> unfinished run of this configuration? finish it ─> list what is new ─> plan ─> stream ─> seal parts
─> every planned row there once? ─> keys, summary, _SUCCESS
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from vidray.checkpoints.checkpoint import Checkpoint, read_checkpoint, result_key
from vidray.errors import RunError, TooManyFailuresError
from vidray.models.families import require_stream
from vidray.scoring import history, host, output
from vidray.scoring.config import CPUS_PER_PREDICTOR, ScoreConfig
from vidray.scoring.host import Host
from vidray.scoring.output import Collector
from vidray.scoring.plan import Plan, commit_plan, find_resumable, plan_fresh
from vidray.scoring.progress import Progress, format_bytes, format_seconds
from vidray.scoring.summary import Clock, format_summary, make_summary
from vidray.storage.lease import Lease
from vidray.storage.store import Store
from vidray.types import Status, ViewConfig

if TYPE_CHECKING:
    from vidray.scoring.runners.ray import Layout, Stage

MAX_ROUNDS = 5
"""How often rows that Ray lost are asked for again before the run gives up."""

MakeStages = Callable[[ScoreConfig, Checkpoint, ViewConfig, int | None, str | None], "tuple[Stage | None, Stage]"]


def default_stages(
    config: ScoreConfig,
    checkpoint: Checkpoint,
    view: ViewConfig,
    num_threads: int | None,
    host_address: str | None = None,
) -> tuple[Stage | None, Stage]:
    """The decode and the predict stage that a run uses; None and one that does both for a streaming run."""
    from vidray.scoring.runners.ray import Stage
    from vidray.scoring.stages import DecodeStage, PredictStage

    if view.span == "stream":
        return None, _stream_stage(config, checkpoint, view, num_threads)
    decode = {"view": view, "limits": config.limits, "fetch_threads": config.fetch_threads}
    predict = predictor_settings(config, checkpoint, view, num_threads) | {"host": host_address}
    return Stage(cls=DecodeStage, kwargs=decode), Stage(cls=PredictStage, kwargs=predict)


def predictor_settings(
    config: ScoreConfig, checkpoint: Checkpoint, view: ViewConfig, num_threads: int | None
) -> dict[str, Any]:
    """Arguments of the run's ``Predictor``."""
    return {
        "checkpoint": checkpoint,
        "view": view,
        "device": config.device,
        "precision": config.precision,
        "compile": config.compile,
        "batch_size": config.batch_size,
        "num_threads": num_threads,
        "top_k": config.top_k,
    }


def _stream_stage(config: ScoreConfig, checkpoint: Checkpoint, view: ViewConfig, num_threads: int | None) -> Stage:
    from vidray.scoring.runners.ray import Stage
    from vidray.scoring.streaming import StreamStage

    kwargs = {
        "checkpoint": checkpoint,
        "view": view,
        "limits": config.limits,
        "num_videos": config.streams_per_actor(num_threads),
        "device": config.device,
        "precision": config.precision,
        "num_threads": num_threads,
        "top_k": config.top_k,
    }
    return Stage(cls=StreamStage, kwargs=kwargs)


def _versions(rows: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(rows["uri"], pc.fill_null(rows["etag"], ""), "\x1f")


def _num_cpus() -> int:
    return len(os.sched_getaffinity(0))


class ScoreJob:
    """One command's work on one output."""

    def __init__(
        self, config: ScoreConfig, *, progress: Progress | None = None, make_stages: MakeStages = default_stages
    ) -> None:
        self.config = config
        self.progress = progress or Progress()
        self.store = Store(config.output, conditional=not config.allow_unconditional_store)
        self.checkpoint = read_checkpoint(config.model)
        if config.streaming:
            require_stream(self.checkpoint.family, self.checkpoint.config)
        self.view = config.effective_view(self.checkpoint.meta.view)
        self.result_key = result_key(self.checkpoint.meta.fingerprint, self.view)
        self._make_stages = make_stages
        self._host: Host | None = None

    def run(self) -> list[dict[str, Any]]:
        """Finish what was begun, then score what is new. Returns the summaries of the runs worked on.

        Raises UsageError, RunError, or TooManyFailuresError when all is written but too many videos failed.
        """
        if not self.config.allow_unconditional_store:
            self.store.probe()
        with Lease(self.store).held() as lease, contextlib.ExitStack() as connection:
            summaries = [self._execute(plan, lease, connection) for plan in self._plans()]
        if not summaries:
            self.progress.say("nothing new to score: the output holds every listed object")
        self._check_failures(summaries)
        return summaries

    def dry_run(self) -> str:
        """What a run would do, without doing any of it."""
        lines = []
        resumable = self._resumable()
        if resumable is not None:
            sealed = output.sealed_shards(self.store, resumable.header.run_id)
            lines.append(
                f"would resume run {resumable.header.run_id}: {resumable.shards.count - len(sealed)} of "
                f"{resumable.shards.count} parts are missing, of {resumable.rows.num_rows:,} videos"
            )
        plan = self._fresh_plan()
        if resumable is not None:
            planned = pc.is_in(_versions(plan.rows), _versions(resumable.rows))
            plan = dataclasses.replace(plan, rows=plan.rows.filter(pc.invert(planned)))
        num_bytes = pc.sum(plan.rows["size_bytes"]).as_py() or 0
        lines.append(
            f"listed {plan.header.num_listed:,}, already done {plan.header.num_already_done:,}, "
            f"would score {plan.rows.num_rows:,} videos ({format_bytes(num_bytes)}) in {plan.shards.count} parts"
        )
        lines.append(self._estimate(plan.rows.num_rows))
        self.progress.clear()
        return "\n".join(lines)

    def _plans(self) -> Iterator[Plan]:
        """The runs to work on, one after the other: an unfinished one, then a fresh one with what is new."""
        resumable = self._resumable()
        if resumable is not None:
            self.progress.say(f"resuming run {resumable.header.run_id}")
            yield resumable
        if self.config.run_id is not None and (resumable is not None or self._is_known(self.config.run_id)):
            return
        fresh = self._fresh_plan()
        if fresh.rows.num_rows > 0:
            yield commit_plan(self.store, fresh)

    def _is_known(self, run_id: str) -> bool:
        return run_id in history.run_files(self.store)

    def _resumable(self) -> Plan | None:
        plan = find_resumable(
            self.store, source=self.config.source, result_key=self.result_key, run_id=self.config.run_id
        )
        if plan is None or not history.is_finished(history.run_files(self.store)[plan.header.run_id]):
            return plan
        self.progress.say(f"run {plan.header.run_id} is finished already; take another --run-id to score what is new")
        return None

    def _fresh_plan(self) -> Plan:
        self.progress.stage("listing the sources")
        return plan_fresh(
            self.store,
            self.config,
            fingerprint=self.checkpoint.meta.fingerprint,
            view_config=self.view.to_json(),
            result_key=self.result_key,
            on_progress=lambda count: self.progress.stage(f"listing the sources: {count:,} objects"),
        )

    def _execute(self, plan: Plan, lease: Lease, connection: contextlib.ExitStack) -> dict[str, Any]:
        header, clock = plan.header, Clock()
        sealed = output.sealed_shards(self.store, header.run_id)
        collector = Collector(
            store=self.store,
            plan=plan.rows,
            shards=plan.shards,
            run_id=header.run_id,
            sealed=sealed,
            constants=self._constants(header.run_id),
            before_seal=lease.check,
        )
        self.progress.say(f"run {header.run_id}: {plan.rows.num_rows:,} videos in {plan.shards.count} parts")
        self.progress.start(total=plan.rows.num_rows, done=collector.num_rows)
        with self.progress.ticking():
            self._stream_all(plan, collector, clock, connection)
        lease.check()
        return self._finish(plan, clock)

    def _constants(self, run_id: str) -> dict[str, str]:
        return {
            "model": self.config.model,
            "fingerprint": self.checkpoint.meta.fingerprint,
            "view_config": self.view.to_json(),
            "result_key": self.result_key,
            "run_id": run_id,
        }

    def _stream_all(self, plan: Plan, collector: Collector, clock: Clock, connection: contextlib.ExitStack) -> None:
        for _ in range(MAX_ROUNDS):
            missing = collector.missing_rows()
            if len(missing) == 0:
                return
            self._stream(plan.rows.take(pa.array(missing)), collector, clock, connection)
        raise RunError(
            f"{len(collector.missing_rows())} of {plan.rows.num_rows} rows were lost {MAX_ROUNDS} times; "
            "what came is kept, and the same command goes on from there"
        )

    def _stream(self, rows: pa.Table, collector: Collector, clock: Clock, connection: contextlib.ExitStack) -> None:
        # Ray: a second to import, not needed when there is nothing to do.
        from vidray.cluster import connected, read_cluster
        from vidray.ray_helpers import helpers_here

        self.progress.stage("starting the workers")
        self._begin_host(connection)
        # Ray Data takes most of a second to import, and Ray's processes leave a core idle while they start.
        threading.Thread(target=importlib.import_module, args=("vidray.scoring.runners.ray",), daemon=True).start()
        is_own = connection.enter_context(connected(self.config.ray_address, runtime_envs=False))
        from vidray.scoring.runners import ray as pipeline

        if is_own:
            connection.enter_context(helpers_here())
        cluster = read_cluster()
        layout = pipeline.make_layout(self.config, self.view, cluster, num_rows=rows.num_rows)
        threads = layout.threads_per_predictor
        address = self._host_address(layout)
        decode, predict = self._make_stages(self.config, self.checkpoint, self.view, threads, address)
        stream = pipeline.stream(
            rows, decode=decode, predict=predict, layout=layout, stall_timeout=self.config.stall_seconds
        )
        with contextlib.closing(stream) as tables:  # Ray aborts the process if it is shut down while it executes
            for table in tables:
                for fresh in collector.add(table):
                    clock.add(fresh)
                    num_failed = pc.sum(pc.not_equal(fresh["status"], Status.OK.value)).as_py()
                    self.progress.advance(done=fresh.num_rows, failed=num_failed)

    def _begin_host(self, connection: contextlib.ExitStack) -> None:
        """Have the network load while Ray starts, where that is on this machine."""
        config = self.config
        is_alone = config.predictors is None and _num_cpus() < 2 * CPUS_PER_PREDICTOR and not config.streaming
        if self._host is None and is_alone and host.is_useful(device=config.device, ray_address=config.ray_address):
            settings = predictor_settings(config, self.checkpoint, self.view, _num_cpus())
            self._host = connection.enter_context(contextlib.closing(Host(**settings)))

    def _host_address(self, layout: Layout) -> str | None:
        """Of the host, if its predictor is the one that the layout asks for; else it is closed."""
        if self._host is None:
            return None
        if layout.predict.max_size == 1 and layout.threads_per_predictor == _num_cpus():
            return self._host.address
        self._host.close()  # Ray counts CPUs by the container's quota, and may have found fewer
        self._host = None
        return None

    def _finish(self, plan: Plan, clock: Clock) -> dict[str, Any]:
        """Count what is there, and only then say so; ``_SUCCESS`` comes last."""
        run_id = plan.header.run_id
        keys = history.read_run_keys(self.store, run_id)
        history.check_complete(plan.rows, keys, result_key=self.result_key)
        summary = make_summary(
            plan,
            keys,
            clock,
            # Each decoder of a streaming run fetches its own next video.
            fetch_threads=1 if self.config.streaming else self.config.fetch_threads,
            max_failure_rate=self.config.max_failure_rate,
        )
        marker = "_SUCCESS" if summary["outcome"] == "success" else "_FAILED"
        files = {
            "keys.parquet": output.parquet_bytes(keys, {"run_id": run_id}),
            "summary.json": json.dumps(summary, indent=2, ensure_ascii=False).encode(),
            marker: b"",
        }
        for name, data in files.items():
            with contextlib.suppress(FileExistsError):  # ours, from an attempt that was cut off here
                self.store.create(history.run_file(run_id, name), data)
        history.merge_keys(self.store)
        self.progress.say(format_summary(summary))
        return summary

    def _check_failures(self, summaries: list[dict[str, Any]]) -> None:
        bad = [summary for summary in summaries if summary["outcome"] != "success"]
        if bad:
            raise TooManyFailuresError(
                f"{bad[-1]['num_failed']} of {bad[-1]['num_planned']} videos failed, more than "
                f"--max-failure-rate {self.config.max_failure_rate} allows. All rows are written, "
                f"and the run {bad[-1]['run_id']} is marked _FAILED"
            )

    def _estimate(self, num_videos: int) -> str:
        rates = [
            (summary["created_at"], summary["this_process"]["videos_per_second"])
            for run_id, files in history.run_files(self.store).items()
            if "summary.json" in files
            for summary in [json.loads(self.store.read(history.run_file(run_id, "summary.json")))]
            if summary["result_key"] == self.result_key and summary["this_process"]["videos_per_second"] > 0
        ]
        if not rates:
            return "no finished run of this model and views to estimate the time from"
        created_at, rate = max(rates)
        return f"about {format_seconds(num_videos / rate)} at the {rate:.1f} videos/s of the run of {created_at}"
