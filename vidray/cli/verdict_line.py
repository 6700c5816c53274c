"""The last line on standard output: how the command ended, as one JSON object. The Ray Jobs API knows only 0 and 1."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vidray import logs
from vidray.errors import UsageError

if TYPE_CHECKING:
    from vidray.scoring.config import ScoreConfig
    from vidray.scoring.verdict import Verdict


@dataclass(kw_only=True)
class Ending:
    """What is known of a command's end."""

    is_night: bool = False
    """True for commands that end with a verdict."""
    config: ScoreConfig | None = None
    """Whose webhooks are told; None: nobody is."""
    verdict: Verdict | None = None
    error: BaseException | None = None
    """What broke it off."""

    def watch(self, command: Callable[[], int]) -> int:
        """Call a command, and remember what breaks it off."""
        try:
            return command()
        except BaseException as error:
            self.error = error
            raise

    def tell(self) -> None:
        """Tell the webhooks, and print the verdict: after the message on what went wrong, since Ray's logs of a job
        have both streams in one. Nothing for ``--help`` and ``--dry-run``, which end no night.
        """
        is_over = isinstance(self.error, SystemExit) and not self.error.code
        if self.verdict is None and self.is_night and self.error is not None and not is_over:
            from vidray.scoring.verdict import Tally

            by_parser = isinstance(self.error, SystemExit)
            error = UsageError("the command line is wrong; standard error says how") if by_parser else self.error
            self.verdict = Tally(max_failure_rate=0.0).verdict(error)
        if self.verdict is None:
            return
        is_interrupted = self.verdict.exit_code > 128  # whoever did that waits seconds
        if not is_interrupted:
            self._notify(self.verdict)
        print(self.verdict.to_json(), flush=True)
        if is_interrupted:
            self._notify(self.verdict)

    def _notify(self, verdict: Verdict) -> None:
        if self.config is None or not self.config.notify:
            return
        from vidray.scoring.notify import notify

        config = self.config
        notify(
            config.notify,
            config.notify_text,
            verdict,
            config.output,
            on_problem=lambda text: logs.tell(text, level=logging.WARNING),
        )
