"""The last line on standard output: how the command ended, as one JSON object. The Ray Jobs API knows only 0 and 1."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vidray.scoring.verdict import Verdict


@contextlib.contextmanager
def verdict_printed() -> Iterator[Callable[[Verdict | None], None]]:
    """Prints a verdict at the end of the block: the last that was handed over, else one of what broke the block off.

    Nothing is printed where nothing was handed over and nothing broke (``--help``, ``--dry-run``).
    """
    verdicts: list[Verdict | None] = [None]
    try:
        yield verdicts.append
    except BaseException as error:
        if verdicts[-1] is None and not (isinstance(error, SystemExit) and not error.code):
            from vidray.scoring.verdict import Tally

            verdicts.append(Tally(max_failure_rate=0.0).verdict(error))
        raise
    finally:
        if verdicts[-1] is not None:
            print(verdicts[-1].to_json(), flush=True)
