"""Events for the standard ``logging`` module: loggers named ``vidray.*``, and a line of JSON for each where asked for.

Importing vidray configures nothing, so a program's own configuration of ``logging`` holds. Only the command line, with
``--log-format json``, puts a handler in place.
"""

from __future__ import annotations

import datetime
import json
import logging
import socket
import sys
from typing import Literal

LogFormat = Literal["text", "json"]

ROOT = logging.getLogger("vidray")
ROOT.addHandler(logging.NullHandler())  # else Python would print warnings of a program that configured no logging

_run_id: str | None = None


def set_run(run_id: str | None) -> None:
    """Which run the events of this process belong to, from now on."""
    global _run_id
    _run_id = run_id


class JsonFormatter(logging.Formatter):
    """One JSON object on one line: ``time``, ``level``, ``logger``, ``run_id``, ``node``, ``actor``, ``message``, and
    numbers that an event carries (``extra={"numbers": …}``)."""

    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "run_id": _run_id,
            "node": socket.gethostname(),
            "actor": getattr(record, "actor", "driver"),
            "message": record.getMessage(),
            **getattr(record, "numbers", {}),
        }
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event, ensure_ascii=False, default=str)


class _JsonHandler(logging.StreamHandler):
    """Writes to what standard error is at the time."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(JsonFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def configure(log_format: LogFormat) -> None:
    """Of the command line: with ``json`` each event is one line on standard error, and nothing else goes there."""
    for handler in [handler for handler in ROOT.handlers if isinstance(handler, _JsonHandler)]:
        ROOT.removeHandler(handler)
    if log_format == "json":
        ROOT.addHandler(_JsonHandler())
        ROOT.setLevel(logging.INFO)


def tell(text: str, *, level: int = logging.ERROR) -> None:
    """Of the command line: an event that is shown on standard error, too."""
    ROOT.log(level, "%s", text)
    if not is_json():
        print(f"vidray: {text}", file=sys.stderr, flush=True)


def is_json() -> bool:
    """True if events are written as JSON, so that nothing else should be."""
    return any(isinstance(handler, _JsonHandler) for handler in ROOT.handlers)
