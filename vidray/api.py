"""What ``import vidray`` offers: the commands as functions, with the names and defaults of their flags."""

from __future__ import annotations

import dataclasses
import difflib
import io
import logging
import os
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from vidray.flags import choices_of, flag_name, require
from vidray.storage import redaction, retry
from vidray.types import Limits

if TYPE_CHECKING:
    import pyarrow as pa

    from vidray.progress import Progress
    from vidray.scoring.classifier import Classifier
    from vidray.scoring.verdict import Verdict

Place = str | os.PathLike[str]
Config = TypeVar("Config")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreResult:
    """How a call of `score` ended. The rows are in ``output``."""

    output: str
    verdict: Verdict
    """What became of every listed video: ``num_listed``, ``num_done``, ``num_scored``, ``num_failed`` …"""

    def read(self, *, columns: Sequence[str] | None = None) -> pa.Table:
        """The current row of each video, as `vidray.read`."""
        return read(self.output, columns=columns)


def score(
    source: Place | Sequence[Place], model: Place, output: Place, *, quiet: bool = False, **options: Any
) -> ScoreResult:
    """Score every video of the sources that the output does not hold yet, as ``vidray score``.

    Args:
        source: a folder, a glob, a video or a manifest; or several.
        model: a checkpoint folder or a Hugging Face Hub id.
        output: the folder that the results go to.
        quiet: print nothing. (Events go to the ``logging`` module either way, by loggers named ``vidray.*``.)
        options: any flag of ``vidray score``: ``views="5x3"``, ``max_failure_rate=0.1`` …

    Raises:
        UsageError: a value will not do.
        RunError: the run could not go on; the same call goes on from there.
        OutputInUseError: a RunError; another run works on the output, and ``wait`` is not set.
        TooManyFailuresError: all rows are written, but more videos than ``max_failure_rate`` have no scores.
    """
    from vidray.scoring.config import ScoreConfig
    from vidray.scoring.job import ScoreJob

    config = make_config(ScoreConfig, source=source, model=model, output=output, **options)
    progress = _progress(quiet)
    prepare_process(config, on_wait=progress.show)
    job = ScoreJob(config, progress=progress)
    job.run()
    assert job.verdict is not None
    return ScoreResult(output=job.store.uri, verdict=job.verdict)


def train(
    source: Place | Sequence[Place], model: Place, output: Place, *, quiet: bool = False, **options: Any
) -> dict[str, Any]:
    """Fine-tune a model on labelled videos, as ``vidray train``; ``output`` becomes a checkpoint.

    Args:
        source: folders by class, a table or a list; or several.
        model: what to start from.
        quiet: print nothing.
        options: any flag of ``vidray train``: ``epochs=10``, ``workers=4`` …

    Returns:
        The figures of the last validation: ``accuracy``, ``nll`` …

    Raises:
        UsageError, RunError, TooManyFailuresError: as `score`.
    """
    from vidray.training import job
    from vidray.training.config import TrainConfig

    config = make_config(TrainConfig, source=source, model=model, output=output, **options)
    log = _logger(quiet)
    prepare_process(config, on_wait=_show(quiet))
    return job.train(config, log=log)


def evaluate(source: Place | Sequence[Place], model: Place, *, quiet: bool = False, **options: Any) -> dict[str, Any]:
    """Evaluate a checkpoint on labelled videos, as ``vidray evaluate``. Returns the figures.

    Args:
        options: any flag of ``vidray evaluate``: ``views="5x3"``, ``split="test"``, ``output="evaluation"`` …

    Raises:
        UsageError, RunError, TooManyFailuresError: as `score`.
    """
    from vidray.results.evaluation import evaluate as run_evaluation
    from vidray.training.config import EvaluateConfig

    config = make_config(EvaluateConfig, source=source, model=model, **options)
    log = _logger(quiet)
    prepare_process(config, on_wait=_show(quiet))
    return run_evaluation(config, log=log, progress=_progress(quiet))


def load(model: Place, **options: Any) -> Classifier:
    """A model that is called with videos; arguments and what it raises are those of `Classifier`."""
    from vidray.scoring.classifier import Classifier

    return Classifier(model, **options)


def read(output: Place, *, columns: Sequence[str] | None = None) -> pa.Table:
    """The current rows of an output: one of each video, or span of one, for each result key (model, views, …).

    Args:
        columns: only these; None: all (docs/output.md).

    Raises:
        RunError: there are no rows, or the store failed.
        KeyError: there is no such column.
    """
    from vidray.results import read as results

    return results.read(os.fspath(output), columns=columns)


def make_config(config_class: type[Config], **values: Any) -> Config:
    """A config of keyword arguments: places may be path objects, and one may stand for several.

    Raises:
        TypeError: there is no such name (the nearest ones are told), or it is of use on the command line only.
        UsageError: a value is none of those that are allowed.
    """
    hints, limit_names = typing.get_type_hints(config_class), [item.name for item in dataclasses.fields(Limits)]
    known = {*hints, *limit_names} - _ONLY_TYPED
    for name in values.keys() - known:
        if name in _ONLY_TYPED:
            raise TypeError(f"{name!r} is for the command line")
        near = difflib.get_close_matches(name, known, n=3)
        raise TypeError(f"got {name!r}, which is no option{f'; the nearest: {near}' if near else ''}")
    limits = {name: values.pop(name) for name in limit_names if name in values}
    if limits:
        values["limits"] = dataclasses.replace(values.get("limits", Limits()), **limits)
    for name, value in values.items():
        values[name] = _as_hinted(name, value, hints[name])
    return config_class(**values)


_ONLY_TYPED = {"config", "dry_run", "log_format", "notify", "notify_text"}


def _as_hinted(name: str, value: Any, hint: Any) -> Any:
    """A path as text, one thing as a tuple of one, and a word only if it is one of those that are allowed."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if typing.get_origin(hint) is tuple:
        items = (value,) if isinstance(value, str) else value
        return tuple(os.fspath(item) if isinstance(item, os.PathLike) else item for item in items)
    words, is_number = choices_of(hint), float in typing.get_args(hint) and isinstance(value, int | float)
    allowed = not words or value is None or value in words.values() or is_number
    require(allowed, flag_name(name), value, ", ".join(words.values()))
    return value


def prepare_process(config: Any, *, on_wait: Callable[[str], None]) -> None:
    """What a config decides for the whole process: which parameters are secret, and how long stores are waited for.

    Args:
        on_wait: gets a line when a store is waited for.
    """
    redaction.configure(getattr(config, "secret_parameters", ()))
    retry.configure(deadline_seconds=getattr(config, "store_deadline_seconds", None), on_wait=on_wait)


def _progress(quiet: bool) -> Progress:
    from vidray.progress import Progress

    return Progress(out=io.StringIO() if quiet else None)


def _show(quiet: bool) -> Callable[[str], None]:
    return (lambda line: None) if quiet else (lambda line: print(line, file=sys.stderr, flush=True))


def _logger(quiet: bool) -> Callable[[str], None]:
    show, events = _show(quiet), logging.getLogger("vidray.training")

    def log(line: str) -> None:
        show(line)
        events.info("%s", line)

    return log
