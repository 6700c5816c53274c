"""An object's identity is its URI without what opens it, and no message shows that."""

from __future__ import annotations

import pytest

from vidray.storage import redaction
from vidray.storage.redaction import public_uri, redact

S3 = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=A%2F2026&X-Amz-Security-Token=T&X-Amz-Signature=5ec2e7"
CLOUDFRONT = "Expires=1&Signature=5ec2e7&Key-Pair-Id=K&Policy=P"


@pytest.mark.parametrize(
    ("uri", "public"),
    [
        (f"https://b.s3.amazonaws.com/v.mp4?{S3}", "https://b.s3.amazonaws.com/v.mp4"),
        (f"https://b.s3.amazonaws.com/v.mp4?versionId=3&{S3}", "https://b.s3.amazonaws.com/v.mp4?versionId=3"),
        ("https://h/v?AWSAccessKeyId=A&Signature=5ec2e7&Expires=1", "https://h/v"),
        ("https://h/v?X-Goog-Signature=5ec2e7&generation=7&GoogleAccessId=x", "https://h/v?generation=7"),
        (
            "https://a.blob.core.windows.net/c/v?sv=1&st=2&se=3&sr=b&sp=r&sig=5ec2e7%3D&snapshot=s",
            "https://a.blob.core.windows.net/c/v?snapshot=s",
        ),
        (f"https://d.cloudfront.net/v.mp4?{CLOUDFRONT}", "https://d.cloudfront.net/v.mp4"),
        ("https://h/v?token=5ec2e7&id=a%20b&access_token=5ec2e7#f", "https://h/v?id=a%20b#f"),
        ("https://me:5ec2e7@h:8080/v?a=1", "https://h:8080/v?a=1"),
        ("ftp://me:5ec2e7@h/v", "ftp://h/v"),
        # These name objects.
        ("https://h/v?st=1&sp=2&expires=no", "https://h/v?st=1&sp=2&expires=no"),
        ("s3://b/a?token=1&X-Amz-Signature=2", "s3://b/a?token=1&X-Amz-Signature=2"),
        ("abfss://container@account.dfs.core.windows.net/v", "abfss://container@account.dfs.core.windows.net/v"),
        ("/local/v?token=1", "/local/v?token=1"),
    ],
)
def test_the_public_uri(uri: str, public: str) -> None:
    assert public_uri(uri) == public
    assert public_uri(public) == public


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot read 'https://h/v?unknown=5ec2e7&id=2', it is gone", "cannot read 'https://h/v?…', it is gone"),
        ("403 at http://me:5ec2e7@h:8080/v.mp4", "403 at http://h:8080/v.mp4"),
        ("ftp://me:5ec2e7@h/v", "ftp://h/v"),
        ("no part of s3://b/a?b.mp4", "no part of s3://b/a?b.mp4"),
    ],
)
def test_no_message_shows_credentials_or_parameters_whatever_their_names(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_other_parameters_may_be_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_extra", frozenset())
    assert public_uri("https://h/v?Key=5ec2e7&id=1") == "https://h/v?Key=5ec2e7&id=1"
    redaction.configure(["key"])
    assert public_uri("https://h/v?Key=5ec2e7&id=1") == "https://h/v?id=1"
