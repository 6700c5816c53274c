"""``vidray nightly``: one night, from the listing to the page in the morning.

score ─> of each run without a page: compare, keep its profile, write the page ─> one verdict on all of it

The lease keeps overlapping nights apart while they score. What comes after it is created once, so two nights that write
the same page leave one.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Annotated

from vidray import logs
from vidray.errors import TooManyFailuresError, TooMuchChangedError
from vidray.flags import require, shown_as
from vidray.pages.page import render
from vidray.results.comparison import compare_runs, write_profile
from vidray.results.report import scoring_page
from vidray.results.run_rows import ended_runs
from vidray.scoring.config import ScoreConfig
from vidray.scoring.history import run_files
from vidray.scoring.job import ScoreJob
from vidray.scoring.stage_specs import MakeRunStages, default_stages
from vidray.storage.store import Store

FOLDER = "_reports"
_MOST_MADE_UP_FOR = 7
"""Pages of earlier nights that one night writes."""


@dataclass(frozen=True, kw_only=True)
class NightlyConfig(ScoreConfig):
    """Spend a night: score what is new, compare it with the last good run, keep a profile, write a page on it into the
    output (_reports/<run>.html), and tell webhooks. The same command every night; what a night that died left undone,
    the next one does."""

    max_drift: Annotated[float | None, shown_as("DISTANCE")] = None
    """Exit with code 4 if labels, scores or statuses moved further, as a Jensen-Shannon distance from 0 to 1, and
    further than by chance."""
    max_flips: Annotated[float | None, shown_as("SHARE")] = None
    """Exit with code 4 if more than this share of the videos that another model scored before have another label."""
    frames: bool = True
    """Show frames of some videos on the page; they are read again for that. --no-frames: names only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag, value in (("--max-drift", self.max_drift), ("--max-flips", self.max_flips)):
            require(value is None or 0 <= value <= 1, flag, value, "a number from 0 to 1")


class Nightly:
    """One night's work on one output."""

    def __init__(self, config: NightlyConfig, *, make_stages: MakeRunStages = default_stages) -> None:
        self.config = config
        self.job = ScoreJob(config, make_stages=make_stages, leaves_verdict=False)
        self._last_page: str | None = None

    def run(self) -> None:
        """Score, compare, report; leaves one verdict, ``job.verdict``.

        Raises:
            TooManyFailuresError, TooMuchChangedError: all is written, the page too.
            UsageError, RunError, OutputInUseError: as `ScoreJob.run`, or a file of the output is damaged.
        """
        try:
            failed = self._score()
            changed = self._report()
            problem = failed or changed
            if problem is not None:
                raise problem
        except BaseException as error:
            self.job.end(error, report=self._last_page)
            raise
        finally:
            logs.set_run(None)
            self.job.progress.clear()
        self.job.end(None, report=self._last_page)

    def _score(self) -> TooManyFailuresError | None:
        try:
            self.job.run()
        except TooManyFailuresError as error:
            return error
        return None

    def _report(self) -> TooMuchChangedError | None:
        """The last run is compared each night: trying again makes no good night of a bad one."""
        store, told = self.job.store, None
        without_page = runs_without_page(store)
        for run_id in without_page or _last_run(store):
            logs.set_run(run_id)
            self.job.progress.stage(f"comparing run {run_id} with the one before")
            found = compare_runs(store.uri, run_id)
            write_profile(found)
            told = found.exceeded(max_drift=self.config.max_drift, max_flips=self.config.max_flips) or told
            if run_id in without_page:
                self._write_page(run_id)
            self._last_page = store.uri_for(page_path(run_id))
        return None if told is None else TooMuchChangedError(told)

    def _write_page(self, run_id: str) -> None:
        progress, store = self.job.progress, self.job.store
        progress.stage(f"writing the page on run {run_id}")
        page = scoring_page(store.uri, run_id, None, with_frames=self.config.frames)
        with contextlib.suppress(FileExistsError):  # of a night beside this one
            store.create(page_path(run_id), render(page).encode())
        progress.say(f"the page on run {run_id} is {store.uri_for(page_path(run_id))}")


def page_path(run_id: str) -> str:
    """Where the page on a run lies, relative to the output."""
    return f"{FOLDER}/{run_id}.html"


def runs_without_page(store: Store) -> list[str]:
    """The ended runs since the last one that has a page, the oldest first; of an output without pages the last run."""
    pages, found = set(store.list(FOLDER)), list[str]()
    for run_id in reversed(_ended(store)):
        if page_path(run_id) in pages:
            break
        found.append(run_id)
    return found[: _MOST_MADE_UP_FOR if pages else 1][::-1]


def _last_run(store: Store) -> list[str]:
    return _ended(store)[-1:]


def _ended(store: Store) -> list[str]:
    if not any("summary.json" in files for files in run_files(store).values()):
        return []  # no video was ever listed
    return [run.run_id for run in ended_runs(store)]
