"""Tells webhooks how a command ended (``--notify``). What goes wrong with that is one line, and changes no verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vidray import webhook
from vidray.scoring.verdict import OUTPUT_IN_USE, Verdict
from vidray.storage.redaction import public_uri
from vidray.webhook import FIELDS


def notify(urls: Sequence[str], text: str, verdict: Verdict, output: str, *, on_problem: Callable[[str], None]) -> None:
    """Tell each of the webhooks. Says nothing of a command that found another run at work.

    Args:
        text: with names of `webhook.FIELDS` in braces.
        on_problem: gets a line for each that could not be told.
    """
    if verdict.exit_code == OUTPUT_IN_USE:
        return
    facts = facts_of(verdict, output)
    num_tries = 1 if verdict.exit_code > 128 else webhook.NUM_TRIES  # whoever interrupted it waits
    for url in map(webhook.resolve, urls):
        problem = webhook.post(url, " ".join(text.format(**facts).split()), facts, num_tries=num_tries)
        if problem is not None:
            on_problem(problem)


def facts_of(verdict: Verdict, output: str) -> dict[str, Any]:
    """The `webhook.FIELDS`, without secrets: a verdict has none."""
    told: dict[str, Any] = {name: getattr(verdict, name) for name in FIELDS if name != "output"}
    return told | {
        "output": public_uri(output),
        "message": verdict.message or "",
        "runs": " ".join(verdict.runs),
        "report": verdict.report or "",
    }
