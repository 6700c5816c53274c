"""One POST of JSON to a webhook: Slack's, Teams's, or any that takes JSON. Its URL is a secret, and never shown whole.

Slack takes ``{"text": …}``. A Teams workflow takes an adaptive card under ``attachments``, a name that means something
else to Slack. So Slack's own hosts get the text alone, and every other host the text, the card and the facts.
"""

from __future__ import annotations

import http
import json
import os
import random
import string
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from vidray.errors import UsageError

DEFAULT_TEXT = (
    "vidray: {outcome} (exit code {exit_code}). {output}: {num_listed} listed, {num_scored} scored, "
    "{num_failed} failed. {message} {report}"
)
FIELDS = (
    *("outcome", "exit_code", "message", "time", "output", "runs", "report"),
    *("num_listed", "num_done", "num_scored", "num_failed"),
)
"""What may stand in braces in ``--notify-text``."""


NUM_TRIES = 3
TRY_SECONDS = 10.0
"""How long one try may take in all, however slowly the server answers."""
_PAUSE_SECONDS = 1.0
"""Before the second try, at most; twice as long before the third."""
_WORTH_ANOTHER_TRY = (http.HTTPStatus.REQUEST_TIMEOUT, http.HTTPStatus.TOO_MANY_REQUESTS)
_SLACK_HOSTS = ("hooks.slack.com", "hooks.slack-gov.com")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would take the message, and what of the URL is secret, elsewhere."""

    def redirect_request(self, *_: Any) -> None:
        return None


def check(urls: Sequence[str], text: str) -> None:
    """Raise UsageError for a URL or a text that will not do."""
    for url in urls:
        resolve(url)
    try:
        parts = list(string.Formatter().parse(text))
        good = all(name in (None, *FIELDS) and not (spec or conversion) for _, name, spec, conversion in parts)
    except ValueError:  # a brace alone
        good = False
    if not good:
        names = ", ".join(f"{{{name}}}" for name in FIELDS)
        raise UsageError(f"--notify-text: got {text!r}, allowed in braces are {names}")


def resolve(url: str) -> str:
    """The URL of a webhook; of ``$NAME`` what that environment variable holds.

    Raises:
        UsageError: it is none. The message does not show it.
    """
    name, value = ("something else", url)
    if url.startswith("$"):
        name, value = url, os.environ.get(url[1:], "")
        if not value:
            raise UsageError(f"--notify: got {url}, which is not set in the environment")
    try:
        parts = urlsplit(value)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or not value.isascii() or not value.isprintable() or " " in value:
        raise UsageError(f"--notify: got {name}, allowed is an http(s) URL, or $NAME of a variable that holds one")
    return value


def shown(url: str) -> str:
    """What may be shown of a webhook: its host."""
    return urlsplit(url).hostname or ""


def body_for(url: str, text: str, facts: dict[str, Any]) -> dict[str, Any]:
    """What is sent."""
    if shown(url) in _SLACK_HOSTS:
        return {"text": text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}
    card = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": [{"type": "TextBlock", "text": text, "wrap": True}],
    }
    attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "contentUrl": None, "content": card}
    return {"type": "message", "text": text, "attachments": [attachment], "facts": facts}


def post(url: str, text: str, facts: dict[str, Any], *, num_tries: int = NUM_TRIES) -> str | None:
    """Send it, in at most ``num_tries`` tries. Raises nothing.

    Returns:
        None if it was taken, else why not, on one line that shows the host alone.
    """
    data = json.dumps(body_for(url, text, facts), ensure_ascii=False).encode()
    for attempt in range(1, num_tries + 1):
        reason, is_final = _try(url, data)
        if reason is None:
            return None
        if is_final or attempt == num_tries:
            tries = "" if attempt == 1 else f" ({attempt} tries)"
            return f"{shown(url)} was not notified: {reason}{tries}"
        time.sleep(random.uniform(0.5, 1.0) * _PAUSE_SECONDS * 2 ** (attempt - 1))
    return None


def _try(url: str, data: bytes) -> tuple[str | None, bool]:
    """(why it was not taken, whether another try is of no use). In a thread: a socket's time-out is for each byte."""
    outcome: list[tuple[str | None, bool]] = []
    thread = threading.Thread(target=lambda: outcome.append(_send(url, data)), name="vidray-webhook", daemon=True)
    thread.start()
    thread.join(TRY_SECONDS)
    return outcome[0] if outcome else (f"no answer in {TRY_SECONDS:g} s", False)


def _send(url: str, data: bytes) -> tuple[str | None, bool]:
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"}, method="POST")
    try:
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=TRY_SECONDS):
            return None, False
    except urllib.error.HTTPError as error:
        error.close()
        return f"HTTP {error.code}", error.code < 500 and error.code not in _WORTH_ANOTHER_TRY
    except Exception as error:  # whose text may hold the URL
        cause = getattr(error, "reason", error)
        return (cause.strerror if isinstance(cause, OSError) else None) or type(cause).__name__, False
