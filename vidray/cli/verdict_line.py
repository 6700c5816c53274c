"""The last line on standard output: how the command ended, as one JSON object. The Ray Jobs API knows only 0 and 1."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vidray import logs

if TYPE_CHECKING:
    from vidray.scoring.config import ScoreConfig
    from vidray.scoring.verdict import Verdict


@dataclass(kw_only=True)
class Ending:
    """What is known of a command's end."""

    config: ScoreConfig | None = None
    """Whose webhooks are told; None: nobody is."""
    verdict: Verdict | None = None


@contextlib.contextmanager
def verdict_printed() -> Iterator[Ending]:
    """Tells the webhooks and prints the verdict at the end of the block: one of what broke the block off, if none is
    known. Nothing is told where nothing broke and none is known (``--help``, ``--dry-run``).
    """
    ending = Ending()
    try:
        yield ending
    except BaseException as error:
        if ending.verdict is None and not (isinstance(error, SystemExit) and not error.code):
            from vidray.scoring.verdict import Tally

            ending.verdict = Tally(max_failure_rate=0.0).verdict(error)
        raise
    finally:
        if ending.verdict is not None:
            try:
                _notify(ending.config, ending.verdict)
            finally:
                print(ending.verdict.to_json(), flush=True)


def _notify(config: ScoreConfig | None, verdict: Verdict) -> None:
    if config is None or not config.notify:
        return
    from vidray.scoring.notify import notify

    notify(config.notify, config.notify_text, verdict, config.output, on_problem=_warn)


def _warn(text: str) -> None:
    logs.ROOT.warning("%s", text)
    if not logs.is_json():
        print(f"vidray: {text}", file=sys.stderr, flush=True)
