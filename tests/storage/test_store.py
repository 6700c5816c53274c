"""Stores keep their promise on real parts: one writer wins, objects appear whole, listings are up to date."""

from __future__ import annotations

import http.server
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.stores import STRANGE_NAMES, filesystem
from vidray.errors import UsageError, VideoError
from vidray.storage import store as storage
from vidray.storage.fetch import fetch
from vidray.storage.localize import localize
from vidray.storage.location import locate
from vidray.storage.store import Store
from vidray.storage.versions import version_at
from vidray.types import Limits, Status, VideoRef

STORES = ["local", "s3", "azure", "memory"]


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of an empty folder on the store that the test is parametrised with."""
    match request.param:
        case "local":
            return str(tmp_path / "out")
        case "s3":
            return f"{request.getfixturevalue('s3_bucket')}/out"
        case "azure":
            return f"{request.getfixturevalue('azure_container')}/out"
        case _:
            return f"{request.getfixturevalue('memory_folder')}/out"


on_every_store = pytest.mark.parametrize("folder", STORES, indirect=True)
on_remote_stores = pytest.mark.parametrize("folder", STORES[1:], indirect=True)


def ref_of(uri: str) -> VideoRef:
    """The object as a listing would name it now."""
    size, etag = version_at(locate(uri)) or (None, None)
    return VideoRef(uri=uri, size_bytes=size, etag=etag)


def overwrite(folder: str, name: str, data: bytes) -> None:
    """Replaces an object as somebody else would."""
    fs, path = filesystem(folder)
    fs.pipe_file(f"{path}/{name}", data)


def status_of(ref: VideoRef, limits: Limits | None = None) -> Status:
    """How the fetch of this ref fails."""
    with pytest.raises(VideoError) as caught:
        fetch(ref, limits=limits or Limits())
    return caught.value.status


class TestStore:
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

    @pytest.mark.parametrize("folder", ["local", "s3", "azure"], indirect=True)
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

    @pytest.mark.parametrize("folder", ["local", "s3"], indirect=True)
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
        storage.create_local(str(tmp_path / "a" / "b"), b"1")
        with pytest.raises(FileExistsError):
            storage.create_local(str(tmp_path / "a" / "b"), b"2")
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
            storage.rename_exclusively(str(tmp_path / "a"), str(tmp_path / "b"))
        storage.rename_exclusively(str(tmp_path / "a"), str(tmp_path / "c"))
        assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"b": "b", "c": "a"}


class TestFetch:
    @on_every_store
    def test_every_name_is_taken_literally(self, folder: str) -> None:
        # adlfs drops newlines from the paths that it is given
        names = [name for name in STRANGE_NAMES if not (folder.startswith("az:") and "\n" in name)]
        for name in names:
            Store(folder).create(name, name.encode())
        for name in names:
            assert fetch(ref_of(f"{folder}/{name}"), limits=Limits()) == name.encode(), name

    @on_every_store
    def test_an_overwritten_object_has_changed(self, folder: str) -> None:
        Store(folder).create("v.mp4", b"old")
        ref = ref_of(f"{folder}/v.mp4")
        assert ref.etag
        overwrite(folder, "v.mp4", b"new")
        assert status_of(ref) == Status.CHANGED
        assert fetch(VideoRef(uri=ref.uri), limits=Limits()) == b"new"

    @on_every_store
    def test_a_size_alone_is_compared(self, folder: str) -> None:
        Store(folder).create("v.mp4", b"old")
        assert status_of(VideoRef(uri=f"{folder}/v.mp4", size_bytes=2)) == Status.CHANGED

    @on_every_store
    def test_a_deleted_object_is_not_found(self, folder: str) -> None:
        store = Store(folder)
        store.create("v.mp4", b"old")
        ref = ref_of(f"{folder}/v.mp4")
        store.delete("v.mp4")
        assert status_of(ref) == Status.NOT_FOUND

    @on_every_store
    def test_too_large_is_found_out_with_and_without_a_listed_size(self, folder: str) -> None:
        Store(folder).create("v.mp4", b"12345")
        limits = Limits(max_object_bytes=4)
        assert status_of(ref_of(f"{folder}/v.mp4"), limits) == Status.TOO_LARGE
        assert status_of(VideoRef(uri=f"{folder}/v.mp4"), limits) == Status.TOO_LARGE
        assert fetch(ref_of(f"{folder}/v.mp4"), limits=Limits(max_object_bytes=5)) == b"12345"

    @pytest.mark.parametrize("folder", ["local", "s3"], indirect=True)
    def test_many_threads_share_one_file_system(self, folder: str) -> None:
        store = Store(folder)
        for i in range(8):
            store.create(f"{i}", bytes([i]) * 100_000)
        refs = [ref_of(store.uri_for(f"{i % 8}")) for i in range(64)]
        with ThreadPoolExecutor(32) as pool:
            found = list(pool.map(lambda ref: fetch(ref, limits=Limits()), refs))
        assert [data[0] for data in found] == [i % 8 for i in range(64)]
        assert locate(folder).fs is locate(f"{folder}/other").fs

    def test_a_missing_bucket_is_not_found(self, s3_server) -> None:
        assert status_of(VideoRef(uri="s3://no-such-bucket-here/v.mp4")) == Status.NOT_FOUND

    def test_a_name_that_is_not_utf8_is_read_by_its_path(self, tmp_path: Path) -> None:
        raw = os.fsencode(tmp_path) + b"/\xff.mp4"
        with open(raw, "wb") as file:
            file.write(b"data")
        assert fetch(VideoRef(uri=f"{tmp_path}/\\xff.mp4", path=raw), limits=Limits()) == b"data"

    def test_what_is_no_regular_file_is_unsupported_and_never_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.mp4")
        (tmp_path / "folder.mp4").mkdir()
        for path in (tmp_path / "pipe.mp4", tmp_path / "folder.mp4", Path("/dev/zero")):
            assert status_of(VideoRef(uri=str(path))) == Status.UNSUPPORTED

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_a_forbidden_file_is_access_denied(self, tmp_path: Path) -> None:
        (tmp_path / "v.mp4").touch(mode=0)
        assert status_of(VideoRef(uri=str(tmp_path / "v.mp4"))) == Status.ACCESS_DENIED

    def test_an_unknown_protocol_is_a_row_too(self) -> None:
        assert status_of(VideoRef(uri="gopher://x/v.mp4")) == Status.FETCH_FAILED


class Site(http.server.BaseHTTPRequestHandler):
    """A web server whose paths say how it answers."""

    num_failures = 0
    etag = '"1"'

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name = self.path.strip("/")
        if name == "flaky" and Site.num_failures < 2:
            Site.num_failures += 1
            name = "503"
        self.send_response(int(name) if name.isdigit() else 200)
        if name != "endless":
            self.send_header("Content-Length", "5")
        self.send_header("ETag", Site.etag)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(b"12345" * (1000 if name == "endless" else 1))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    """The address of a running Site."""
    Site.num_failures, Site.etag = 0, '"1"'
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class TestFetchHttp:
    def test_reads_with_the_listed_etag_and_notices_a_change(self, site: str) -> None:
        ref = ref_of(f"{site}/v.mp4?token=a%20b")
        assert (ref.size_bytes, ref.etag) == (5, "1")
        assert fetch(ref, limits=Limits()) == b"12345"
        Site.etag = '"2"'
        assert status_of(ref) == Status.CHANGED

    @pytest.mark.parametrize(
        ("name", "status"),
        [
            ("403", Status.ACCESS_DENIED),
            ("401", Status.ACCESS_DENIED),
            ("404", Status.NOT_FOUND),
            ("410", Status.NOT_FOUND),
        ],
    )
    def test_answers_become_statuses(self, site: str, name: str, status: Status) -> None:
        assert status_of(VideoRef(uri=f"{site}/{name}")) == status

    def test_a_store_that_is_down_for_a_moment_is_asked_again(self, site: str) -> None:
        assert fetch(VideoRef(uri=f"{site}/flaky"), limits=Limits()) == b"12345"
        assert Site.num_failures == 2

    def test_a_store_that_stays_down_is_a_failed_fetch(self, site: str) -> None:
        assert status_of(VideoRef(uri=f"{site}/503")) == Status.FETCH_FAILED

    def test_reading_is_bounded_where_no_size_is_told(self, site: str) -> None:
        assert status_of(VideoRef(uri=f"{site}/endless"), Limits(max_object_bytes=4000)) == Status.TOO_LARGE
        assert len(fetch(VideoRef(uri=f"{site}/endless"), limits=Limits(max_object_bytes=5000))) == 5000


class TestLocate:
    def test_an_unknown_protocol_lists_what_is_allowed(self) -> None:
        with pytest.raises(UsageError, match=r"unknown protocol 'gopher' in 'gopher://x'; allowed are .*gs.*s3"):
            locate("gopher://x")

    def test_a_missing_package_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "gcsfs", None)
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
