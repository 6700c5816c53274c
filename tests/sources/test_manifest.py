"""A source becomes exactly the rows that it holds, on every store, or an error that names it."""

from __future__ import annotations

import functools
import http.server
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.stores import STRANGE_NAMES, filesystem
from vidray.errors import UsageError
from vidray.sources.manifest import MANIFEST_SCHEMA, list_sources
from vidray.storage.fetch import fetch
from vidray.storage.store import Store
from vidray.types import Limits, VideoRef

TREE = [
    "a.mp4",
    "b.MOV",
    "notes.txt",
    ".hidden.mp4",
    "2024-01/c.mp4",
    "2024-01/deep/d.webm",
    "2024-01/deep/readme",
    "2024-02/e.mkv",
    "2023-01/f.mp4",
    ".trash/g.mp4",
    "out/_runs/r1/h.mp4",
    "out/predictions/run=r1/part-0.parquet",
]
VISIBLE = ["2023-01/f.mp4", "2024-01/c.mp4", "2024-01/deep/d.webm", "2024-02/e.mkv", "a.mp4", "b.MOV"]


@pytest.fixture(params=["local", "s3", "azure", "memory"])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of a folder that holds TREE, each file with its own path as content."""
    fixtures = {"s3": "s3_bucket", "azure": "azure_container", "memory": "memory_folder"}
    base = str(tmp_path) if request.param == "local" else request.getfixturevalue(fixtures[request.param])
    fill(f"{base}/videos", TREE)
    return f"{base}/videos"


def fill(folder: str, names: list[str]) -> None:
    """Writes objects whose content is their name."""
    store = Store(folder)
    for name in names:
        store.create(name, name.encode())


def names_in(table: pa.Table, folder: str) -> list[str]:
    """The rows' URIs relative to a folder."""
    assert table.schema == MANIFEST_SCHEMA
    uris = table["uri"].to_pylist()
    assert all(uri.startswith(f"{folder}/") for uri in uris)
    return [uri[len(folder) + 1 :] for uri in uris]


def read_all(table: pa.Table) -> list[bytes]:
    """Every row's object, fetched as it was listed."""
    rows = table.select(["uri", "path", "size_bytes", "etag"]).to_pylist()
    return [fetch(VideoRef(**row), limits=Limits()) for row in rows]


class TestFolders:
    @pytest.mark.parametrize("slash", ["", "/"])
    def test_all_visible_videos_at_any_depth_sorted(self, tree: str, slash: str) -> None:
        table = list_sources([tree + slash])
        assert names_in(table, tree) == VISIBLE
        assert table["size_bytes"].to_pylist() == [len(name) for name in VISIBLE]
        assert table["etag"].null_count == 0
        assert read_all(table) == [name.encode() for name in VISIBLE]

    def test_a_change_shows_in_the_etag(self, tree: str) -> None:
        before = list_sources([tree])["etag"].to_pylist()
        fs, path = filesystem(tree)
        fs.pipe_file(f"{path}/a.mp4", b"other")
        after = list_sources([tree])["etag"].to_pylist()
        assert [a == b for a, b in zip(after, before, strict=True)] == [name != "a.mp4" for name in VISIBLE]

    def test_listing_once_or_twice_gives_the_same_rows(self, tree: str) -> None:
        once = list_sources([tree], num_threads=1)
        assert list_sources([tree, f"{tree}/a.mp4", f"{tree}/2024-*/*"]).equals(once)
        assert list_sources([tree], num_threads=16).equals(once)

    def test_nothing_found_says_what_was_looked_for(self, tree: str) -> None:
        with pytest.raises(
            UsageError, match=r"nothing found in '.*/out': looked for .*\.mp4.*; [12] other files are there"
        ):
            list_sources([tree, f"{tree}/out"])

    def test_what_is_left_is_counted_by_extension_and_can_be_taken(self, tree: str) -> None:
        left: Counter[str] = Counter()
        list_sources([tree], left=left)
        assert left == {".txt": 1, "without extension": 1, ".parquet": 1}, "hidden files and runs are not meant"
        left.clear()
        table = list_sources([tree], extensions=[".txt"], left=left)
        assert names_in(table, tree) == sorted([*VISIBLE, "notes.txt"])
        assert left == {"without extension": 1, ".parquet": 1}

    def test_odd_extensions_are_counted_together(self, tmp_path: Path) -> None:
        """Counts are stored and printed; a bucket of names with hashes has as many extensions as files."""
        for name in (b"a.mp4", b"b.\xff", b"c.t\nxt", b"d.0123456789abcdef", b"e.txt"):
            Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
        for number in range(80):
            (tmp_path / f"f.{number}").touch()
        left: Counter[str] = Counter()
        list_sources([str(tmp_path)], left=left)
        assert left.total() == 84
        assert left["of odd names"] == 3
        assert len(left) <= 51
        json.dumps(left).encode()

    def test_a_glob_leaves_nothing_that_was_asked_for(self, tree: str) -> None:
        left: Counter[str] = Counter()
        list_sources([f"{tree}/*.mp4"], left=left)
        assert not left

    def test_what_does_not_exist_is_named(self, tree: str) -> None:
        for source in (f"{tree}/nowhere", f"{tree}/nowhere/", f"{tree}/nowhere.mp4", f"{tree}/nowhere.csv"):
            with pytest.raises(UsageError, match="nowhere"):
                list_sources([source])

    def test_progress_counts_rows(self, tree: str) -> None:
        seen: list[int] = []
        list_sources([tree, f"{tree}/a.mp4"], on_progress=seen.append)
        assert seen == sorted(seen)
        assert seen[-1] == len(VISIBLE) + 1

    def test_a_missing_bucket_is_named(self, s3_server) -> None:
        with pytest.raises(UsageError, match=r"cannot list 's3://no-such-bucket-here/x': FileNotFoundError"):
            list_sources(["s3://no-such-bucket-here/x"])

    def test_an_unknown_protocol_is_named(self) -> None:
        with pytest.raises(UsageError, match="gopher"):
            list_sources(["gopher://x"])


class TestSingleObjects:
    def test_any_name_is_taken(self, tree: str) -> None:
        assert names_in(list_sources([f"{tree}/notes.txt", f"{tree}/.hidden.mp4"]), tree) == [
            ".hidden.mp4",
            "notes.txt",
        ]

    def test_wildcards_in_a_name_that_exists_are_literal(self, tree: str) -> None:
        fill(tree, ["[x]*.mp4", "x*.mp4", "[y]/z.mp4"])
        assert names_in(list_sources([f"{tree}/[x]*.mp4"]), tree) == ["[x]*.mp4"]
        assert names_in(list_sources([f"{tree}/[y]"]), tree) == ["[y]/z.mp4"]


class TestGlobs:
    @pytest.mark.parametrize(
        ("pattern", "names"),
        [
            ("*.mp4", [".hidden.mp4", "a.mp4"]),
            ("2024-*/*", ["2024-01/c.mp4", "2024-02/e.mkv"]),
            ("2024-*/**/*", ["2024-01/c.mp4", "2024-01/deep/d.webm", "2024-01/deep/readme", "2024-02/e.mkv"]),
            ("**/[cd].*", ["2024-01/c.mp4", "2024-01/deep/d.webm"]),
            ("202?-01/?.mp4", ["2023-01/f.mp4", "2024-01/c.mp4"]),
            ("2024-01/**", ["2024-01/c.mp4", "2024-01/deep/d.webm", "2024-01/deep/readme"]),
        ],
    )
    def test_every_match_counts_whatever_its_extension(self, tree: str, pattern: str, names: list[str]) -> None:
        assert names_in(list_sources([f"{tree}/{pattern}"]), tree) == names

    def test_no_match_is_an_error(self, tree: str) -> None:
        with pytest.raises(UsageError, match=r"nothing found in '.*\*\.avi': looked for files that match this pattern"):
            list_sources([f"{tree}/*.avi"])

    def test_a_wildcard_in_the_bucket_is_refused(self, s3_server) -> None:
        with pytest.raises(UsageError, match="wildcard in the bucket's name"):
            list_sources(["s3://buck*/x.mp4"])


class TestStrangeNames:
    @pytest.mark.parametrize("store", ["local", "s3", "memory"])
    def test_they_list_and_fetch_literally(self, store: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
        fixtures = {"s3": "s3_bucket", "memory": "memory_folder"}
        base = str(tmp_path) if store == "local" else request.getfixturevalue(fixtures[store])
        fill(f"{base}/videos", STRANGE_NAMES)
        table = list_sources([f"{base}/videos"])
        assert names_in(table, f"{base}/videos") == sorted(STRANGE_NAMES)
        assert read_all(table) == [name.encode() for name in sorted(STRANGE_NAMES)]
        for name in STRANGE_NAMES:
            assert read_all(list_sources([f"{base}/videos/{name}"])) == [name.encode()]

    def test_keys_that_no_folder_could_hold(self, s3_bucket: str) -> None:
        keys = ["v/../up.mp4", "v//double.mp4", "v/./dot.mp4", "v/c\x01.mp4", "v/x/"]
        fs, bucket = filesystem(s3_bucket)
        for key in keys:
            fs.call_s3("put_object", Bucket=bucket, Key=key, Body=key.encode())
        table = list_sources([f"{s3_bucket}/v"])
        assert names_in(table, s3_bucket) == sorted(keys[:-1])  # v/x/ marks an empty folder
        assert read_all(table) == [key.encode() for key in sorted(keys[:-1])]

    def test_local_names_that_are_not_utf8_have_a_path(self, tmp_path: Path) -> None:
        raw = os.fsencode(tmp_path) + b"/caf\xe9.mp4"
        for path in (raw, os.fsencode(tmp_path) + "/café.mp4".encode()):
            with open(path, "wb") as file:
                file.write(path)
        table = list_sources([str(tmp_path)])
        assert names_in(table, str(tmp_path)) == ["caf\\xe9.mp4", "café.mp4"]
        assert table["path"].to_pylist() == [raw, None]
        assert read_all(table) == [raw, os.fsencode(tmp_path) + "/café.mp4".encode()]
        assert list_sources([os.fsdecode(raw)])["path"].to_pylist() == [raw]

    def test_two_files_that_share_a_uri_are_refused_not_dropped(self, tmp_path: Path) -> None:
        (tmp_path / "a\\xff.mp4").touch()
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.mp4")).touch()
        with pytest.raises(UsageError, match="two files have the same URI"):
            list_sources([str(tmp_path)])


class TestLocalTrees:
    def test_links_to_folders_are_followed_but_never_round(self, tmp_path: Path) -> None:
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "a" / "b" / "v.mp4").touch()
        (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
        (tmp_path / "self.mp4").symlink_to(tmp_path / "self.mp4")
        (tmp_path / "link").symlink_to(tmp_path / "a")
        table = list_sources([str(tmp_path)])
        assert names_in(table, str(tmp_path)) == ["a/b/v.mp4", "link/b/v.mp4", "self.mp4"]
        assert table["etag"].to_pylist()[2] is None

    def test_a_link_to_nothing_is_a_row_without_a_version(self, tmp_path: Path) -> None:
        (tmp_path / "v.mp4").symlink_to(tmp_path / "gone.mp4")
        assert list_sources([str(tmp_path)]).select(["size_bytes", "etag"]).to_pylist() == [
            {"size_bytes": None, "etag": None}
        ]

    def test_relative_sources_and_file_uris_become_plain_absolute_paths(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "v.mp4").touch()
        monkeypatch.chdir(tmp_path)
        assert list_sources([".", "v.mp4", f"file://{tmp_path}"])["uri"].to_pylist() == [f"{tmp_path}/v.mp4"]

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_a_folder_that_cannot_be_read_is_an_error_not_a_gap(self, tmp_path: Path) -> None:
        (tmp_path / "v.mp4").touch()
        (tmp_path / "closed").mkdir(mode=0)
        with pytest.raises(UsageError, match=r"cannot list .*PermissionError"):
            list_sources([str(tmp_path)])

    def test_many_files_in_one_folder(self, tmp_path: Path) -> None:
        for i in range(2_500):
            (tmp_path / f"{i:04d}.mp4").touch()
        assert names_in(list_sources([str(tmp_path)]), str(tmp_path)) == [f"{i:04d}.mp4" for i in range(2_500)]


class TestManifestFiles:
    @pytest.fixture(params=["local", "s3"])
    def folder(self, request: pytest.FixtureRequest, tmp_path: Path) -> str:
        base = str(tmp_path) if request.param == "local" else request.getfixturevalue("s3_bucket")
        fill(f"{base}/m", ["v/a.mp4", "v/b c,d.mp4"])
        fill(base, ["up.mp4"])
        return f"{base}/m"

    @pytest.mark.parametrize("extension", ["csv", "jsonl", "ndjson", "parquet", "CSV"])
    def test_relative_uris_start_at_its_folder(self, folder: str, extension: str) -> None:
        rows = [
            {"uri": "v/a.mp4", "label": "run"},
            {"uri": "./v/b c,d.mp4", "label": None},
            {"uri": "../up.mp4", "label": "up"},
            {"uri": f"{folder}/gone.mp4", "label": "run"},
        ]
        Store(folder).create(f"list.{extension}", encode(rows, extension.lower()))
        table = list_sources([f"{folder}/list.{extension}"])
        base = folder[: -len("/m")]
        assert names_in(table, base) == ["m/gone.mp4", "m/v/a.mp4", "m/v/b c,d.mp4", "up.mp4"]
        assert table["label"].to_pylist() == ["run", "run", None, "up"]
        assert table["size_bytes"].to_pylist() == [None, 7, 11, 6]
        assert [etag is None for etag in table["etag"].to_pylist()] == [True, False, False, False]

    def test_its_etags_are_taken_at_their_word(self, folder: str) -> None:
        rows = [{"uri": "v/a.mp4", "etag": '"abc"', "size_bytes": 5}, {"uri": "v/gone.mp4", "etag": "def"}]
        Store(folder).create("list.jsonl", encode(rows, "jsonl"))
        table = list_sources([f"{folder}/list.jsonl"])
        assert table["etag"].to_pylist() == ["abc", "def"]
        assert table["size_bytes"].to_pylist() == [5, None]

    def test_a_label_survives_a_second_source_without_one(self, folder: str) -> None:
        Store(folder).create("list.csv", b"uri,label\nv/a.mp4,run\n")
        for sources in ([f"{folder}/list.csv", f"{folder}/v"], [f"{folder}/v", f"{folder}/list.csv"]):
            assert list_sources(sources)["label"].to_pylist() == ["run", None]

    @pytest.mark.parametrize(
        ("name", "data", "message"),
        [
            ("m.csv", b"url,label\na,b\n", r"needs a column 'uri', found url, label"),
            ("m.jsonl", b'{"url": 1}\n', r"needs a column 'uri', found url"),
            ("m.jsonl", b'{"uri": 1}\n', r"row 1 .*uri must be text, got 1"),
            ("m.jsonl", b'{"uri": "a"}\nnonsense\n', r"cannot read the manifest"),
            ("m.csv", b"uri,size_bytes\na,1\nb,many\n", r"row 2 .*many"),
            ("m.csv", b"uri\ngopher://x/y\n", r"row 1 .*gopher"),
            ("m.csv", b"uri\n\xff\n", r"cannot read the manifest"),
            ("m.parquet", b"PAR1", r"cannot read the manifest"),
            ("m.csv", b"uri\n", r"nothing found in '.*': looked for rows of a manifest"),
        ],
    )
    def test_errors_say_where(self, tmp_path: Path, name: str, data: bytes, message: str) -> None:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UsageError, match=message):
            list_sources([str(tmp_path / name)])


def encode(rows: list[dict], extension: str) -> bytes:
    """A manifest file's bytes."""
    if extension == "parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows), sink)
        return sink.getvalue().to_pybytes()
    if extension == "csv":
        lines = [",".join(rows[0]), *(",".join(f'"{value or ""}"' for value in row.values()) for row in rows)]
        return "\n".join(lines).encode()
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def website(tmp_path: Path) -> Iterator[str]:
    """The address of a web server that shows a folder with TREE as pages of links."""
    fill(f"{tmp_path}/videos", TREE)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class TestHttp:
    def test_pages_of_links_are_folders(self, website: str) -> None:
        table = list_sources([f"{website}/videos/"])
        assert names_in(table, f"{website}/videos") == VISIBLE
        assert table["etag"].null_count == 0
        assert read_all(table) == [name.encode() for name in VISIBLE]

    def test_a_url_with_a_query_is_one_object(self, website: str) -> None:
        table = list_sources([f"{website}/videos/a.mp4?id=[1]"])
        assert table["uri"].to_pylist() == [f"{website}/videos/a.mp4?id=[1]"]
        assert table["size_bytes"].to_pylist() == [5]


def test_signed_urls_are_one_object_whatever_signs_them(tmp_path) -> None:
    manifest = tmp_path / "m.jsonl"
    urls = [f"https://me:pw@host/v.mp4?id=1&X-Amz-Signature={number}" for number in (1, 2)]
    manifest.write_text("".join(json.dumps({"uri": url, "etag": "e"}) + "\n" for url in urls))
    (row,) = list_sources([str(manifest)]).to_pylist()
    assert row["uri"] == "https://host/v.mp4?id=1"
    assert row["path"].decode() in urls
