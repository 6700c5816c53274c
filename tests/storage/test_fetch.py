"""A fetch returns the listed version of an object, or the status that says why not; names are taken literally."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.stores import STRANGE_NAMES, on_every_store, overwrite, ref_of
from vidray.errors import VideoError
from vidray.storage.fetch import fetch
from vidray.storage.location import locate
from vidray.storage.store import Store
from vidray.types import Limits, Status, VideoRef


def status_of(ref: VideoRef, limits: Limits | None = None) -> Status:
    """How the fetch of this ref fails."""
    with pytest.raises(VideoError) as caught:
        fetch(ref, limits=limits or Limits())
    return caught.value.status


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
        assert status_of(VideoRef(uri=f"{site}/503"), Limits(fetch_deadline_seconds=0.5)) == Status.FETCH_FAILED

    def test_reading_is_bounded_where_no_size_is_told(self, site: str) -> None:
        assert status_of(VideoRef(uri=f"{site}/endless"), Limits(max_object_bytes=4000)) == Status.TOO_LARGE
        assert len(fetch(VideoRef(uri=f"{site}/endless"), limits=Limits(max_object_bytes=5000))) == 5000
