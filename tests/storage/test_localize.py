"""Of a remote folder, the wanted files are copied once per version, by whichever process comes first."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.stores import on_remote_stores, overwrite
from vidray.errors import UsageError
from vidray.storage.localize import localize
from vidray.storage.location import locate
from vidray.storage.store import Store


class TestLocalize:
    @on_remote_stores
    def test_brings_what_matches_once_per_version(self, folder: str, tmp_path: Path) -> None:
        store = Store(folder)
        for name in ("config.json", "model.safetensors", "training.log", "deep/x.json"):
            store.create(name, name.encode())
        names = ["*.json", "model.safetensors", "not-there.txt"]
        first = Path(localize(locate(folder), names, tmp_path / "cache"))
        assert {p.name: p.read_text() for p in first.iterdir()} == {
            "config.json": "config.json",
            "model.safetensors": "model.safetensors",
        }
        assert localize(locate(folder), names, tmp_path / "cache") == str(first)
        overwrite(folder, "config.json", b"changed!")
        second = Path(localize(locate(folder), names, tmp_path / "cache"))
        assert second != first
        assert (second / "config.json").read_text() == "changed!"
        assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == sorted([first.name, second.name])

    @pytest.mark.parametrize("folder", ["s3"], indirect=True)
    def test_of_many_at_once_all_get_the_same_whole_copy(self, folder: str, tmp_path: Path) -> None:
        for i in range(5):
            Store(folder).create(f"{i}.json", b"x" * 1000)
        with ThreadPoolExecutor(8) as pool:
            found = set(pool.map(lambda _: localize(locate(folder), ["*.json"], tmp_path / "cache"), range(8)))
        assert len(found) == 1
        assert [p.name for p in (tmp_path / "cache").iterdir()] == [Path(found.pop()).name]

    @on_remote_stores
    def test_a_folder_without_these_files_is_named(self, folder: str, tmp_path: Path) -> None:
        Store(folder).create("other", b"")
        with pytest.raises(UsageError, match=r"/out has none of config\.json"):
            localize(locate(folder), ["config.json"], tmp_path)
