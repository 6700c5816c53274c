"""The life of a score run, from sources to ``_SUCCESS``.

lease ─> unfinished run of this configuration? finish it ─> list what is new ─> plan ─> run the stages ─> seal parts
─> every planned row there once? ─> keys, summary, _SUCCESS
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vidray import logs
from vidray.checkpoints.checkpoint import read_checkpoint, require_labels, result_key, with_labels, without_labels
from vidray.checkpoints.convert import parse_labels
from vidray.errors import RunError, UsageError
from vidray.models.families import require_stream
from vidray.progress import Progress, format_bytes, format_seconds
from vidray.scoring import history, output
from vidray.scoring.accounting import Untried
from vidray.scoring.collector import MAX_LOSSES, Collector, LossCounter
from vidray.scoring.config import ScoreConfig
from vidray.scoring.monitored import record_rows
from vidray.scoring.output import Shards
from vidray.scoring.plan import Plan, RunHeader, commit_plan, find_resumable
from vidray.scoring.plan_rows import PLAN_SCHEMA, PlanRows
from vidray.scoring.planning import count_new, plan_fresh
from vidray.scoring.runners.base import Runner, Stages
from vidray.scoring.runners.choose import make_runner
from vidray.scoring.stage_specs import MakeRunStages, default_stages
from vidray.scoring.stages import PREDICTED_SCHEMA
from vidray.scoring.summary import format_files_left, format_summary, make_summary
from vidray.scoring.timing import StageTimes
from vidray.scoring.verdict import Tally, Verdict, leave
from vidray.sources.manifest import list_sources
from vidray.sources.signed_urls import lacks_secrets, paths_of, with_secrets
from vidray.storage.folder_kind import require_kind
from vidray.storage.lease import Lease
from vidray.storage.redaction import public_uri
from vidray.storage.store import Store
from vidray.types import Status

MIN_ROWS_LOST_AT_ONCE = 20
"""If at least so many rows are asked for one by one and none comes back, the engine is at fault, not the videos."""


class ScoreJob:
    """One command's work on one output."""

    def __init__(
        self,
        config: ScoreConfig,
        *,
        progress: Progress | None = None,
        make_stages: MakeRunStages = default_stages,
        leaves_verdict: bool = True,
    ) -> None:
        """``leaves_verdict``: False for a caller that goes on with the night, and calls `end` itself."""
        self.config = config
        self.progress = progress or Progress(logger=__name__)
        self.store = Store(config.output, conditional=not config.allow_unconditional_store)
        self.checkpoint = read_checkpoint(config.model, require_head=not config.no_labels)
        if config.no_labels:
            self.checkpoint = without_labels(self.checkpoint)
        if config.labels is not None:
            self.checkpoint = with_labels(self.checkpoint, parse_labels(config.labels), prompt=config.prompt)
        require_labels(self.checkpoint)
        if config.streaming:
            require_stream(self.checkpoint.family, self.checkpoint.config)
        self.view = config.effective_view(self.checkpoint.meta.view)
        self._make_stages, self._leaves_verdict = make_stages, leaves_verdict
        self._tally = Tally(max_failure_rate=config.max_failure_rate, limit=config.limit)
        self.verdict: Verdict | None = None
        """How ``run`` ended, once it has."""

    def run(self) -> list[dict[str, Any]]:
        """Finish what was begun, then score what is new. Returns the summaries of the runs worked on.

        Raises UsageError, RunError, OutputInUseError while another run is at work, or TooManyFailuresError when all is
        written but too many videos have no scores.
        """
        if not self.config.allow_unconditional_store:
            self.store.probe()
        require_kind(self.store, "scores")
        try:
            on_wait = self.progress.say if self.config.wait else None
            with contextlib.closing(self._make_runner()) as runner, Lease(self.store).held(on_wait=on_wait) as lease:
                self._settle(runner)
                for plan in self._plans():
                    self._tally.summaries.append(self._execute(plan, lease, runner))
            if not self._tally.summaries:
                self.progress.say(self._nothing_to_score())
            self._tally.check()
        except BaseException as error:
            if self._leaves_verdict:
                self.end(error)
            raise
        finally:
            logs.set_run(None)
        if self._leaves_verdict:
            self.end(None)
        return self._tally.summaries

    def dry_run(self) -> str:
        """What a run would do, without doing any of it."""
        with contextlib.closing(self._make_runner()) as runner:
            self._settle(runner)
        lines = []
        resumable = self._resumable()
        if resumable is not None:
            sealed = output.sealed_shards(self.store, resumable.header.run_id)
            lines.append(
                f"would resume run {resumable.header.run_id}: {resumable.shards.count - len(sealed)} of "
                f"{resumable.shards.count} parts are missing, of {resumable.rows.num_rows:,} videos"
            )
        plan = self._fresh_plan()
        num_rows, num_bytes = count_new(plan.rows, besides=resumable.rows if resumable else None)
        num_parts = Shards(num_rows=num_rows, rows_per_part=plan.header.rows_per_part).count
        lines.append(
            f"listed {plan.header.num_listed:,}, already done {plan.header.num_already_done:,}, "
            f"would score {num_rows:,} videos ({format_bytes(num_bytes)}) in {num_parts} parts"
        )
        lines += [f"{name}: {untried}" for name, untried in self._untried.items() if untried.count]
        lines += format_files_left(plan.header.files_left)
        lines.append(self._estimate(num_rows))
        self.progress.clear()
        return "\n".join(lines)

    def _make_runner(self) -> Runner:
        return make_runner(self.config, self.view, self._stages, say=self.progress.say)

    def _stages(self, num_threads: int | None) -> Stages:
        return self._make_stages(self.config, self.checkpoint, self.view, num_threads)

    def _settle(self, runner: Runner) -> None:
        """Decide once where the network runs and in what arithmetic: rows of one key are made alike, on any node."""
        device, precision = runner.device(), self.config.precision
        if precision == "auto":
            precision = "bf16" if device == "cuda" else "fp32"
        self.config = dataclasses.replace(self.config, device=device, precision=precision)
        self._precision = precision
        self.result_key = result_key(
            self.checkpoint.fingerprint,
            self.view,
            precision=precision,
            embedding=self.config.embedding,
            has_labels=not self.config.no_labels,
        )

    @property
    def _untried(self) -> dict[str, Untried]:
        return {"deferred": self._tally.deferred, "given up": self._tally.given_up}

    def _nothing_to_score(self) -> str:
        listed = self._tally.listed
        if listed is None:
            return "nothing to score: the run is finished"
        left = "".join(f"\n{line}" for line in format_files_left(listed.files_left))
        if listed.num_already_done == listed.num_listed and listed.limit is not None:
            return f"nothing new to score: the output holds the {listed.num_listed:,} videos of --limit {listed.limit}"
        if listed.num_already_done == listed.num_listed:
            return f"nothing new to score: the output holds every listed object ({listed.num_listed:,}){left}"
        rest = ", ".join(f"{untried} {name}" for name, untried in self._untried.items() if untried.count)
        return (
            f"nothing to score now: listed {listed.num_listed:,}, done before {listed.num_already_done:,}, {rest}. "
            f"--retry-failed tries these again{left}"
        )

    def end(self, error: BaseException | None, *, report: str | None = None) -> None:
        """Leave the verdict in the output.

        Args:
            error: what ended the command, if something did.
            report: URI of the page on it.
        """
        self.verdict = dataclasses.replace(self._tally.verdict(error), report=report)
        leave(self.store, self.verdict)

    def _plans(self) -> Iterator[Plan]:
        """The runs to work on, one after the other: an unfinished one, then a fresh one with what is new."""
        resumable = self._resumable()
        if resumable is not None:
            self.progress.say(f"resuming run {resumable.header.run_id}")
            self._tally.listed = resumable.header
            yield resumable
        if self.config.run_id is not None and (resumable is not None or self._is_known(self.config.run_id)):
            return
        fresh = self._fresh_plan()
        if fresh.rows.num_rows > 0:
            yield self._with_secrets(commit_plan(self.store, fresh))

    def _is_known(self, run_id: str) -> bool:
        return run_id in history.run_files(self.store)

    def _resumable(self) -> Plan | None:
        plan = find_resumable(
            self.store, source=self.config.source, result_key=self.result_key, run_id=self.config.run_id
        )
        if plan is None:
            return None
        if not history.is_finished(history.run_files(self.store)[plan.header.run_id]):
            if self.config.limit is not None and plan.header.limit is None:
                raise UsageError(
                    f"--limit {self.config.limit}: run {plan.header.run_id} of all videos is unfinished; finish it "
                    "with the same command without --limit, or try in another --output"
                )
            return self._with_secrets(plan)
        self.progress.say(f"run {plan.header.run_id} is finished already; take another --run-id to score what is new")
        return None

    def _with_secrets(self, plan: Plan) -> Plan:
        """A stored plan has no signed URLs: they would outlive the run, and have expired when it is resumed."""
        if not any(map(lacks_secrets, plan.rows.tables())):
            return plan
        self.progress.stage("listing the sources again, for their signed URLs")
        paths = paths_of(list_sources(self.config.source, extensions=self.config.extensions))
        tables = (with_secrets(table, paths) for table in plan.rows.tables())
        return dataclasses.replace(plan, rows=PlanRows.of(tables, plan.rows.schema))

    def _fresh_plan(self) -> Plan:
        self.progress.stage("listing the sources")
        started = time.perf_counter()

        def report(count: int) -> None:
            rate = count / max(time.perf_counter() - started, 0.1)
            self.progress.stage(f"listing the sources: {count:,} objects · {rate:,.0f}/s")

        plan, account = plan_fresh(
            self.store,
            self.config,
            fingerprint=self.checkpoint.fingerprint,
            view_config=self.view.to_json(),
            precision=self._precision,
            result_key=self.result_key,
            on_progress=report,
        )
        self._tally.listed, self._tally.deferred, self._tally.given_up = plan.header, account.deferred, account.given_up
        if (header := plan.header).num_tar_files:
            where = "1 tar file" if header.num_tar_files == 1 else f"{header.num_tar_files:,} tar files"
            self.progress.say(f"listed {header.num_listed:,}, {header.num_in_tar_files:,} of them in {where}")
        return plan

    def _execute(self, plan: Plan, lease: Lease, runner: Runner) -> dict[str, Any]:
        header, times = plan.header, StageTimes()
        logs.set_run(header.run_id)
        sealed = output.sealed_shards(self.store, header.run_id)
        collector = Collector(
            store=self.store,
            plan=plan.rows,
            shards=plan.shards,
            run_id=header.run_id,
            sealed=sealed,
            constants=self._constants(header),
            before_seal=lease.check,
        )
        self.progress.say(f"run {header.run_id}: {plan.rows.num_rows:,} videos in {plan.shards.count} parts")
        self.progress.start(total=plan.rows.num_rows, done=plan.rows.num_rows - collector.num_missing)
        with self.progress.ticking():
            self._collect(plan, collector, times, runner)
        lease.check()
        return self._finish(plan, times)

    def _constants(self, header: RunHeader) -> dict[str, Any]:
        return {
            "model": public_uri(self.config.model),
            "fingerprint": self.checkpoint.fingerprint,
            "view_config": self.view.to_json(),
            "result_key": self.result_key,
            "run_id": header.run_id,
            "planned_at": datetime.datetime.fromisoformat(header.created_at),
            "precision": self._precision,
        }

    def _collect(self, plan: Plan, collector: Collector, times: StageTimes, runner: Runner) -> None:
        """Wave by wave: neither the runner nor the collector ever holds more rows than a wave has."""
        while collector.num_missing:
            self._collect_wave(collector.missing_rows(most=runner.rows_at_once), plan, collector, times, runner)

    def _collect_wave(
        self, wave: np.ndarray, plan: Plan, collector: Collector, times: StageTimes, runner: Runner
    ) -> None:
        """Ask for rows until all are there. What was lost is asked for again by itself, and given up in the end."""
        losses, alone = LossCounter(), False
        while len(missing := collector.missing_among(wave)):
            self.progress.stage("starting the workers")
            tables = runner.run(plan.rows.take(missing).select(PLAN_SCHEMA.names), alone=alone)
            with contextlib.closing(tables):
                for table in tables:
                    self._add(table, collector, times)
            lost = collector.missing_among(wave)
            if alone and len(lost) == len(missing) >= MIN_ROWS_LOST_AT_ONCE:
                raise RunError(
                    f"{len(lost)} of {plan.rows.num_rows} rows were asked for one by one and none came back; what came "
                    "before is kept, and the same command goes on from there"
                )
            given_up = losses.add(lost)
            if given_up:
                self._add(_lost_rows(plan.rows.take(np.array(given_up)), runner), collector, times)
            alone = True

    def _add(self, table: pa.Table, collector: Collector, times: StageTimes) -> None:
        for fresh in collector.add(table):
            known = times.sandboxes.copy()
            times.add(fresh)
            record_rows(fresh, times, num_left=collector.num_missing, fetch_threads=self.config.threads_that_fetch)
            for text in sorted(times.sandboxes - known):
                self.progress.say(f"sandbox: {text}")
            num_failed = pc.sum(pc.not_equal(fresh["status"], Status.OK.value)).as_py()
            self.progress.advance(done=fresh.num_rows, failed=num_failed)

    def _finish(self, plan: Plan, times: StageTimes) -> dict[str, Any]:
        """Count what is there, and only then say so; ``_SUCCESS`` comes last."""
        run_id = plan.header.run_id
        by_status: Counter[str] = Counter()

        def counted() -> Iterator[pa.Table]:
            for keys in history.checked_keys(self.store, run_id, plan.rows, plan.shards, result_key=self.result_key):
                by_status.update(keys["status"].to_pylist())
                yield keys

        metadata = {"run_id": run_id, "num_parts": plan.shards.count}
        keys_file = output.parquet_stream(counted(), history.KEYS_SCHEMA, metadata)
        summary = make_summary(
            plan,
            by_status,
            times,
            fetch_threads=self.config.threads_that_fetch,
            max_failure_rate=self.config.max_failure_rate,
            untried=self._untried,
        )
        marker = "_SUCCESS" if summary["outcome"] == "success" else "_FAILED"
        files = {
            "keys.parquet": keys_file,
            "summary.json": json.dumps(summary, indent=2, ensure_ascii=False).encode(),
            marker: b"",
        }
        for name, data in files.items():
            with contextlib.suppress(FileExistsError):  # ours, from an attempt that was cut off here
                self.store.create(history.run_file(run_id, name), data)
        history.merge_keys(self.store)
        self.progress.say(format_summary(summary))
        return summary

    def _estimate(self, num_videos: int) -> str:
        rates = [
            (summary["created_at"], summary["this_process"]["videos_per_second"])
            for run_id, files in history.run_files(self.store).items()
            if "summary.json" in files
            for summary in [history.read_summary(self.store, run_id)]
            if summary["result_key"] == self.result_key and summary["this_process"]["videos_per_second"] > 0
        ]
        if not rates:
            return "no finished run of this model and views to estimate the time from"
        created_at, rate = max(rates)
        return f"about {format_seconds(num_videos / rate)} at the {rate:.1f} videos/s of the run of {created_at}"


def _lost_rows(rows: pa.Table, runner: Runner) -> pa.Table:
    """PREDICTED_SCHEMA of plan rows that were lost too often."""
    failed = []
    for values in rows.to_pylist():
        loss = runner.why_lost(values[output.ROW])
        failed.append(
            {name: values[name] for name in (output.ROW, "uri", "etag", "size_bytes", "attempts")}
            | {"status": loss.status.value, "error": f"lost {MAX_LOSSES} times: {loss.message}"}
            | {"scored_at": datetime.datetime.now(datetime.UTC)}
        )
    return pa.Table.from_pylist(failed, PREDICTED_SCHEMA)
