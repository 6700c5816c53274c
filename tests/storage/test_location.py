"""A URI becomes a file system and a literal path, and the URI again."""

from __future__ import annotations

import pytest

from tests.support.stores import STRANGE_NAMES
from vidray.errors import UsageError
from vidray.storage.location import locate


class TestLocate:
    def test_an_unknown_protocol_lists_what_is_allowed(self) -> None:
        with pytest.raises(UsageError, match=r"unknown protocol 'gopher' in 'gopher://x'; allowed are .*gs.*s3"):
            locate("gopher://x")

    def test_a_missing_package_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def lacks_it(*_: object, **__: object) -> None:
            raise ImportError("Please install gcsfs")

        monkeypatch.setattr("fsspec.filesystem", lacks_it)  # it may be installed here, and loaded already
        monkeypatch.setattr("vidray.storage.location._instances", {})
        with pytest.raises(UsageError, match=r"pip install 'vidray\[gcs\]'"):
            locate("gs://bucket/x")

    def test_missing_credentials_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING", raising=False)
        monkeypatch.setattr("vidray.storage.location._instances", {})
        with pytest.raises(UsageError, match=r"cannot set up the file system of az://: ValueError: .*credentials"):
            locate("az://box/x")

    @pytest.mark.parametrize(
        ("uri", "path", "again"),
        [
            ("/a/b#c?d::e", "/a/b#c?d::e", "/a/b#c?d::e"),
            ("file:///a/b%20c", "/a/b%20c", "/a/b%20c"),
            ("memory:///x/y/", "/x/y", "memory://x/y"),
            ("memory://x::y", "/x::y", "memory://x::y"),
            ("http://h/a?b=*#c", "http://h/a?b=*#c", "http://h/a?b=*#c"),
        ],
    )
    def test_paths_are_literal_and_uris_return(self, uri: str, path: str, again: str) -> None:
        assert (locate(uri).path, locate(uri).uri) == (path, again)

    def test_s3_keys_are_literal(self, s3_server) -> None:
        for key in [*STRANGE_NAMES, "a//b", "../b", "/b"]:
            place = locate(f"s3a://bucket/{key}")
            assert (place.path, place.uri) == (f"bucket/{key}", f"s3://bucket/{key}")

    @pytest.mark.parametrize(
        ("uri", "parent"),
        [("/a/b.csv", "/a"), ("/b.csv", "/"), ("http://h/a/b.csv", "http://h/a"), ("memory://f/b.csv", "memory://f")],
    )
    def test_a_parent_is_the_folder_around(self, uri: str, parent: str) -> None:
        assert locate(uri).parent.uri == parent

    def test_an_azure_account_stays_in_the_uri(self, azure_server) -> None:
        place = locate("abfss://box@acme.dfs.core.windows.net/a/b#c")
        assert place.path == "box/a/b#c"
        assert place.uri_of("box/a/d") == "abfss://box@acme.dfs.core.windows.net/a/d"
        assert place.fs.account_name == "acme"
