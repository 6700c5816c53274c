"""Webhooks are told once, whatever they do costs a bounded time, and nothing of their URL but the host is shown."""

from __future__ import annotations

import time

import pytest

from tests.support.faulty_server import drips, faulty_server, free_port, hangs, resets
from tests.support.webhook_server import webhook_server
from vidray import webhook
from vidray.errors import UsageError
from vidray.scoring.config import ScoreConfig

FACTS = {"exit_code": 3}


@pytest.fixture(autouse=True)
def _brief(monkeypatch):
    monkeypatch.setattr(webhook, "TRY_SECONDS", 1.0)
    monkeypatch.setattr(webhook, "_PAUSE_SECONDS", 0.01)


def test_a_webhook_gets_the_text_a_card_for_teams_and_the_facts_once():
    with webhook_server() as hook:
        assert webhook.post(hook.url, "3 failed", FACTS) is None
    (body,) = hook.bodies
    assert (body["text"], body["facts"]) == ("3 failed", FACTS)
    (card,) = body["attachments"]
    assert card["contentType"] == "application/vnd.microsoft.card.adaptive"
    assert card["content"]["body"][0]["text"] == "3 failed"


def test_slack_gets_the_text_alone_and_no_command_of_its_own_in_it():
    url = "https://hooks.slack.com/services/T/B/SECRET"
    assert webhook.body_for(url, "<!channel> a & b", FACTS) == {"text": "&lt;!channel&gt; a &amp; b"}


@pytest.mark.parametrize(
    ("answers", "num_told", "reason"),
    [
        ([500, 429, 200], 3, None),
        ([503], 3, "127.0.0.1 was not notified: HTTP 503 (3 tries)"),
        ([404], 1, "127.0.0.1 was not notified: HTTP 404"),
        ([302], 1, "127.0.0.1 was not notified: HTTP 302"),
    ],
)
def test_an_answer_that_may_become_better_is_waited_for(answers, num_told, reason):
    with webhook_server(*answers) as hook:
        assert webhook.post(hook.url, "text", FACTS) == reason
    assert len(hook.bodies) == num_told


@pytest.mark.parametrize("handle", [hangs, resets, drips(1000, every_seconds=0.1)], ids=["hangs", "resets", "drips"])
def test_a_server_that_is_slow_or_breaks_off_costs_a_bounded_time(handle):
    with faulty_server(handle) as (place, times):
        started = time.monotonic()
        reason = webhook.post(f"http://{place}/SECRET", "text", FACTS)
        assert time.monotonic() - started < 10
    if reason is not None:  # the drip sends its status at once, so it took the message
        assert reason.startswith("127.0.0.1 was not notified: ")
        assert reason.endswith("(3 tries)")
        assert len(times) == 3
    assert "SECRET" not in str(reason)


def test_a_server_that_is_not_there_is_named_by_its_host():
    reason = webhook.post(f"http://127.0.0.1:{free_port()}/SECRET", "text", FACTS)
    assert reason == "127.0.0.1 was not notified: Connection refused (3 tries)"
    assert "SECRET" not in str(webhook.post("http://nowhere.invalid/SECRET", "text", FACTS))


@pytest.mark.parametrize("url", ["hooks.slack.com/SECRET", "ftp://host/SECRET", "https:///SECRET", "http://h/SEC RET"])
def test_what_is_no_webhook_is_refused_and_not_shown(url, monkeypatch):
    monkeypatch.setenv("HOOK", url)
    for given in (url, "$HOOK"):
        with pytest.raises(UsageError, match="--notify: got") as caught:
            ScoreConfig(source=("v",), model="m", output="o", notify=(given,))
        assert "SEC" not in str(caught.value)


def test_a_webhook_may_be_in_the_environment(monkeypatch):
    monkeypatch.setenv("HOOK", "https://example.com/x")
    assert webhook.resolve("$HOOK") == "https://example.com/x"
    with pytest.raises(UsageError, match=r"got \$OTHER_HOOK, which is not set"):
        webhook.resolve("$OTHER_HOOK")


@pytest.mark.parametrize("text", ["{outcom}", "{", "{exit_code.real}", "{runs[0]}", "{message!r}", "{}"])
def test_a_text_with_names_that_there_are_not_is_refused(text):
    with pytest.raises(UsageError, match=r"--notify-text: got .* allowed in braces are \{outcome\}"):
        ScoreConfig(source=("v",), model="m", output="o", notify_text=text)
