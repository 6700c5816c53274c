"""``vidray report``: one page on a run of scoring, or on a training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from vidray.flags import require, shown_as
from vidray.pages.blocks import Page
from vidray.pages.page import render
from vidray.results import report_change, report_found, report_run
from vidray.results.accuracy import accuracy, known_labels
from vidray.results.run_rows import before, choose, compared, database, ended_runs
from vidray.storage.store import Store, file_place


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write a report as one HTML file that asks no server for anything: of a run of vidray score, or of a training.
    Reads only, besides the file."""

    output: Annotated[str | None, shown_as("URI")] = None
    """The folder that vidray score wrote to."""
    model: Annotated[str | None, shown_as("CHECKPOINT")] = None
    """In place of --output: a checkpoint that vidray train made."""
    to: Annotated[str, shown_as("FILE")] = "report.html"
    """Where the page goes; a file that is there is replaced."""
    run: Annotated[str | None, shown_as("RUN")] = None
    """Which run. Default: the last that has ended."""
    against: Annotated[str | None, shown_as("RUN")] = None
    """What to compare it with. Default: the last good run before it, of the same model, views and sources if there is
    one."""
    labelled: Annotated[str | None, shown_as("SOURCE")] = None
    """With --against a run of another model, also tell how often each is right: a folder, table or list of labelled
    videos, as for vidray train."""
    frames: bool = True
    """Show frames of some videos; they are read again for that. --no-frames: names only."""

    def __post_init__(self) -> None:
        require((self.output is None) != (self.model is None), "--output", self.output, "an output, or --model instead")
        require(self.to.lower().endswith((".html", ".htm")), "--to", self.to, "the name of an .html file")
        require(self.model is None or self.run is self.against is None, "--run", self.run, "a run only with --output")
        require(self.model is None or self.labelled is None, "--labelled", self.labelled, "a source only with --output")


def report(config: ReportConfig) -> None:
    """Write the page.

    Raises:
        UsageError: there is no such run or checkpoint.
        RunError: there is nothing to report on, or a store failed.
    """
    if config.model is not None:
        from vidray.training.report import checkpoint_page  # it needs torch

        html = checkpoint_page(config.model)
    else:
        assert config.output is not None
        html = render(_asked_for(config, config.output))
    store, name = file_place(config.to)
    require(bool(name), "--to", config.to, "the name of a file")
    store.overwrite(name, html.encode())


def _asked_for(config: ReportConfig, output: str) -> Page:
    return scoring_page(output, config.run, config.against, labelled=config.labelled, with_frames=config.frames)


def scoring_page(
    output: str, run_id: str | None, against: str | None, *, labelled: str | None = None, with_frames: bool = True
) -> Page:
    """The page of a run."""
    store = Store(output)
    runs = ended_runs(store)
    run = choose(runs, run_id, flag="--run")
    other = before(runs, run) if against is None else choose(runs, against, flag="--against")
    truth = known_labels(run, other, labelled)
    with database(store, compared(runs, other, run)) as db:
        sections = [
            report_run.section(db, run),
            report_found.section(db, store, with_frames=with_frames),
            report_change.section(db, run, other, None if truth is None else accuracy(db, truth)),
        ]
        return Page(
            title=f"Scores of {run.summary['created_at'][:10]}",
            subtitle=store.uri,
            verdict=report_run.verdict(run),
            tone="bad" if run.summary["outcome"] != "success" else "good",
            figures=report_run.headlines(run),
            sections=sections,
            facts=report_run.origin(run),
        )
