"""Stores keep their promise on real parts: one writer wins, objects appear whole, listings are up to date."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.stores import filesystem, on_every_store, ref_of
from vidray.errors import RunError, UsageError
from vidray.storage.fetch import fetch
from vidray.storage.store import Store, create_local, rename_exclusively
from vidray.types import Limits


class ContestedStore(Store):
    """Another writer puts its object right before ours, once."""

    contested = False

    def create(self, path: str, data: bytes) -> None:
        if not self.contested:
            self.contested = True
            super().create(path, b"theirs")
        super().create(path, data)


class TestStore:
    def test_an_object_of_another_writer_in_the_middle_of_an_overwrite_is_overwritten_too(self, tmp_path) -> None:
        store = ContestedStore(str(tmp_path))
        store.overwrite("metrics.jsonl", b"ours")
        assert store.contested
        assert (tmp_path / "metrics.jsonl").read_bytes() == b"ours"

    @pytest.mark.parametrize("damaged", [b"", b'{"run_id": "r1"', b"\xff\xfe", b"[1]"])
    def test_damaged_json_is_one_line_that_names_the_object(self, tmp_path, damaged) -> None:
        store = Store(str(tmp_path))
        store.create("summary.json", damaged)
        with pytest.raises(RunError, match=r"summary\.json cannot be read: .+") as raised:
            store.read_json("summary.json")
        assert "\n" not in str(raised.value)

    def test_what_is_deleted_while_sizes_are_listed_is_left_out(self, tmp_path) -> None:
        (tmp_path / "a").write_bytes(b"12345")
        (tmp_path / "b").symlink_to(tmp_path / "gone")  # as it looks then: listed, and not there
        assert Store(str(tmp_path)).list_sizes() == {"a": 5}

    @on_every_store
    def test_create_then_read_list_exists_delete(self, folder: str) -> None:
        store = Store(folder)
        assert store.list() == []
        assert store.list("predictions") == []
        store.create("predictions/run=1/part-1.parquet", b"one")
        store.create("predictions/run=10/part-0.parquet", b"ten")
        store.create("_runs/1/plan.parquet", b"plan")
        assert store.list("predictions/run=1") == ["predictions/run=1/part-1.parquet"]
        assert store.list() == [
            "_runs/1/plan.parquet",
            "predictions/run=1/part-1.parquet",
            "predictions/run=10/part-0.parquet",
        ]
        assert store.read("_runs/1/plan.parquet") == b"plan"
        assert store.exists("_runs/1/plan.parquet")
        assert not store.exists("_runs/1")
        assert not store.exists("nothing")
        store.delete("_runs/1/plan.parquet")
        store.delete("_runs/1/plan.parquet")
        assert not store.exists("_runs/1/plan.parquet")
        with pytest.raises(FileNotFoundError):
            store.read("_runs/1/plan.parquet")

    @on_every_store
    def test_create_never_replaces(self, folder: str) -> None:
        store = Store(folder)
        store.create("part", b"first")
        with pytest.raises(FileExistsError):
            store.create("part", b"second")
        assert store.read("part") == b"first"

    @on_every_store
    def test_another_process_sees_a_new_object_at_once(self, folder: str) -> None:
        if folder.startswith("memory"):
            folder_of_writer = Store(folder)
            reader = Store(folder)
            assert reader.list() == []
            folder_of_writer.create("a", b"")
            assert reader.list() == ["a"]
            return
        reader = Store(folder)
        assert reader.list() == []
        assert not reader.exists("a/b")
        code = "import sys; from vidray.storage.store import Store; Store(sys.argv[1]).create('a/b', b'x')"
        subprocess.run([sys.executable, "-c", code, folder], check=True)
        assert reader.list() == ["a/b"]
        assert reader.exists("a/b")

    @on_every_store
    def test_of_many_threads_exactly_one_wins_each_path(self, folder: str) -> None:
        num_threads, paths = 8, [f"part-{i}" for i in range(5)]
        barrier = threading.Barrier(num_threads)

        def create_all(writer: int) -> list[str]:
            barrier.wait()
            return [path for path in paths if try_to_create(folder, path, f"{writer}".encode())]

        with ThreadPoolExecutor(num_threads) as pool:
            won = list(pool.map(create_all, range(num_threads)))
        assert sorted(path for one in won for path in one) == paths
        for writer, mine in enumerate(won):
            assert all(Store(folder).read(path) == f"{writer}".encode() for path in mine)

    @pytest.mark.parametrize("folder", ["local", "s3", "gcs", "azure"], indirect=True)
    def test_of_many_processes_exactly_one_wins_each_path(self, folder: str) -> None:
        code = (
            "import sys; from vidray.storage.store import Store; s = Store(sys.argv[1]); s.list()\n"
            "print('ready', flush=True)\n"
            "sys.stdin.readline()\n"
            "for i in range(20):\n"
            "    try: s.create(f'd/{i}', b'x'); print(i)\n"
            "    except FileExistsError: pass\n"
        )
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", code, folder]
        children = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(3)]
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        won = [int(line) for child in children for line in child.communicate()[0].split()]
        assert sorted(won) == list(range(20))

    @pytest.mark.parametrize("folder", ["local", "s3", "gcs"], indirect=True)
    def test_large_objects_are_conditional_too(self, folder: str) -> None:
        store = Store(folder)
        data = b"0123456789abcdef" * (110 * 2**20 // 16)  # above what s3fs uploads in one piece
        store.create("large", data)
        with pytest.raises(FileExistsError):
            store.create("large", data[:-1])
        assert store.read("large") == data

    @on_every_store
    def test_probe_leaves_nothing_behind(self, folder: str) -> None:
        store = Store(folder)
        store.probe()
        assert store.list() == []

    @on_every_store
    def test_uri_for_names_what_can_be_fetched(self, folder: str) -> None:
        store = Store(folder)
        store.create("a/b", b"data")
        assert store.uri_for("a/b") == f"{folder}/a/b"
        assert fetch(ref_of(store.uri_for("a/b")), limits=Limits()) == b"data"

    def test_probe_refuses_a_store_that_ignores_conditions(
        self, monkeypatch: pytest.MonkeyPatch, s3_bucket: str
    ) -> None:
        fs, _ = filesystem(s3_bucket)
        honest = fs.call_s3

        def ignores_conditions(method: str, **options):
            options.pop("IfNoneMatch", None)
            return honest(method, **options)

        monkeypatch.setattr(fs, "call_s3", ignores_conditions)
        with pytest.raises(UsageError, match=r"ignores conditional writes.*--allow-unconditional-store"):
            Store(s3_bucket).probe()
        assert Store(s3_bucket).list() == []
        trusting = Store(s3_bucket, conditional=False)
        trusting.probe()
        trusting.create("a", b"1")
        with pytest.raises(FileExistsError):
            trusting.create("a", b"2")

    def test_probe_names_a_missing_bucket(self, s3_server) -> None:
        with pytest.raises(UsageError, match=r"cannot write to s3://no-such-bucket-here/x: FileNotFoundError"):
            Store("s3://no-such-bucket-here/x").probe()

    def test_probe_names_a_place_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(UsageError, match=r"cannot write to .*/file/out: "):
            Store(str(tmp_path / "file" / "out")).probe()

    def test_only_stores_with_conditional_writes_can_be_outputs(self) -> None:
        with pytest.raises(UsageError, match=r"http://host/x cannot be an output.*s3"):
            Store("http://host/x")

    @pytest.mark.parametrize("path", ["", "/a", "a//b", "../a", "a/../b", "a/", "."])
    def test_paths_stay_inside_the_store(self, path: str, memory_folder: str) -> None:
        with pytest.raises(ValueError, match="relative"):
            Store(memory_folder).create(path, b"")


def try_to_create(folder: str, path: str, data: bytes) -> bool:
    """True if this writer won."""
    try:
        Store(folder).create(path, data)
    except FileExistsError:
        return False
    return True


class TestLocalCreate:
    @pytest.mark.parametrize("blocked", ["fsync", "link"])
    def test_a_kill_in_the_middle_leaves_no_object(self, blocked: str, tmp_path: Path) -> None:
        code = (
            "import os, sys, threading; from vidray.storage.store import Store\n"
            "def wait(*_, **__): print('there', flush=True); threading.Event().wait()\n"
            f"os.{blocked} = wait\n"
            "Store(sys.argv[1]).create('part', b'x' * 1_000_000)\n"
        )
        child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "there\n"
        child.send_signal(signal.SIGKILL)
        child.wait()
        store = Store(str(tmp_path))
        assert store.list() == []
        assert not store.exists("part")
        assert not list(tmp_path.glob("*part*"))  # nor anything that a reader's pattern could match
        store.create("part", b"again")
        assert store.read("part") == b"again"

    def test_leaves_no_temporary_file(self, tmp_path: Path) -> None:
        create_local(str(tmp_path / "a" / "b"), b"1")
        with pytest.raises(FileExistsError):
            create_local(str(tmp_path / "a" / "b"), b"2")
        assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]

    def test_works_without_hard_links(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_links(*_: str) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", no_links)
        assert try_to_create(str(tmp_path), "a", b"1")
        assert not try_to_create(str(tmp_path), "a", b"2")
        assert (tmp_path / "a").read_bytes() == b"1"
        assert [p.name for p in tmp_path.iterdir()] == ["a"]

    def test_renaming_exclusively_never_replaces(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / name).write_text(name)
        with pytest.raises(FileExistsError):
            rename_exclusively(str(tmp_path / "a"), str(tmp_path / "b"))
        rename_exclusively(str(tmp_path / "a"), str(tmp_path / "c"))
        assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"b": "b", "c": "a"}
