"""Every video in a tar file is one row, whatever the file says; damage is seen, and nothing outside it is opened."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.faulty_server import Outage
from tests.support.range_server import RangeServer
from tests.support.stores import on_every_store, overwrite, ref_of
from vidray.errors import RunError, UsageError, VideoError
from vidray.sources.manifest import list_folder, list_sources
from vidray.sources.patterns import VideosOnly
from vidray.sources.rows import RowCollector, video_of
from vidray.sources.tar_shards import index_shard
from vidray.storage import location, retry
from vidray.storage.fetch import fetch
from vidray.storage.store import Store
from vidray.types import Limits, Status


def make_tar(*members: tuple[str, bytes], kind: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def numbered(first: int, last: int) -> bytes:
    return make_tar(*((f"{number}.mp4", f"video {number}".encode()) for number in range(first, last)))


def contents(*sources: str) -> dict[str, bytes | Status]:
    """What each row's fetch gives, by the end of its URI."""
    table = list_sources(sources)
    found = {row["uri"].rpartition("/")[2].rpartition("#")[2]: taken(row) for row in table.to_pylist()}
    assert len(found) == table.num_rows
    return found


def taken(row: dict) -> bytes | Status:
    try:
        return fetch(video_of(row), limits=Limits())
    except VideoError as error:
        return error.status


@on_every_store
def test_each_video_in_a_tar_is_a_row_with_the_tars_version(folder: str) -> None:
    store = Store(folder)
    store.create("s/00.tar", make_tar(("b.mp4", b"one"), ("b.json", b"{}"), ("a.mp4", b"two"), ("empty.mp4", b"")))
    store.create("s/01.tar", numbered(0, 3))
    store.create("s/plain.mp4", b"plain")
    expected = {"a.mp4": b"two", "b.mp4": b"one", "empty.mp4": b"", "plain.mp4": b"plain"}
    assert contents(f"{folder}/s") == expected | {f"{n}.mp4": f"video {n}".encode() for n in range(3)}
    (row,) = list_sources([f"{folder}/s/01.tar"]).slice(1, 1).to_pylist()
    assert (row["uri"], row["size_bytes"]) == (f"{folder}/s/01.tar#1.mp4", 7)
    assert row["etag"] == ref_of(f"{folder}/s/01.tar").etag
    assert list_sources([f"{folder}/s", f"{folder}/s/01.tar", f"{folder}/s/*"]).num_rows == 7


@on_every_store
def test_a_tar_that_is_replaced_after_it_was_listed_has_changed(folder: str) -> None:
    Store(folder).create("s/00.tar", numbered(0, 2))
    rows = list_sources([f"{folder}/s"]).to_pylist()
    overwrite(folder, "s/00.tar", numbered(10, 13))
    assert [taken(row) for row in rows] == [Status.CHANGED] * 2


def test_a_store_that_goes_away_while_tars_are_listed_ends_the_listing(s3_server, s3_bucket, monkeypatch) -> None:
    """There is no partial listing: a row would stay in the output when the store is back."""
    Store(s3_bucket).create("s/00.tar", numbered(0, 2))
    monkeypatch.setattr(location, "_instances", {})
    proxy = Outage(s3_server.endpoint.removeprefix("http://"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    retry.configure(deadline_seconds=1.0)
    (shard,) = list_folder(location.locate(f"{s3_bucket}/s"), extensions=[".tar"]).to_pylist()
    proxy.go_away()
    with pytest.raises(RunError, match=r"cannot list s3://.*/s/00\.tar \(the store is away\)"):
        index_shard(shard, VideosOnly(), RowCollector([].append))


@on_every_store
def test_numbered_tars_are_rows_where_they_are_missing_too(folder: str) -> None:
    for number in (8, 10):
        Store(folder).create(f"s/{number:03d}.tar", numbered(number, number + 1))
    found = contents(f"{folder}/s/{{008..010}}.tar")
    assert found == {"8.mp4": b"video 8", "009.tar": Status.NOT_FOUND, "10.mp4": b"video 10"}


@pytest.mark.parametrize("source", ["{9..1}.tar", "{0..9999999}.tar", "{0..9999}/{0..9999}.tar"])
def test_a_range_that_cannot_be_meant_is_refused(source: str) -> None:
    with pytest.raises(UsageError, match="a range goes up"):
        list_sources([source])


@pytest.mark.parametrize("source", ["{0..3}.tar", "{3..3}.tar", "s/{0..1}/{0..1}.tar"])
def test_a_range_of_which_nothing_is_there_is_refused(tmp_path: Path, source: str) -> None:
    (tmp_path / "4.tar").write_bytes(numbered(0, 2))
    with pytest.raises(UsageError, match=r"nothing found in .*: none of these .* objects is there, such as"):
        list_sources([f"{tmp_path}/{source}"])


@pytest.mark.parametrize("source", ["{0..3}.csv", "{0..3}/*.tar"])
def test_a_range_names_videos_and_tars_and_nothing_else(tmp_path: Path, source: str) -> None:
    with pytest.raises(UsageError, match="allowed in a range of numbers are names of videos and tar files"):
        list_sources([f"{tmp_path}/{source}"])


def test_one_member_may_be_a_source(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(make_tar(("a.mp4", b"a"), ("b#.mp4", b"b"), ("notes", b"c")))
    assert contents(f"{tmp_path}/0.tar#b#.mp4", f"{tmp_path}/0.tar#notes") == {".mp4": b"b", "notes": b"c"}
    assert contents(f"{tmp_path}/0.tar", f"{tmp_path}/0.tar#a.mp4") == {"a.mp4": b"a", ".mp4": b"b"}
    for name, data in (("0.tar#c.mp4", None), ("bad.tar#c.mp4", b"no tar")):
        if data:
            (tmp_path / "bad.tar").write_bytes(data)
        with pytest.raises(UsageError, match=r"#c.mp4': (FileNotFoundError|corrupt: damaged tar file)"):
            list_sources([f"{tmp_path}/{name}"])


def test_a_range_of_one_number_is_one(tmp_path: Path) -> None:
    (tmp_path / "04.tar").write_bytes(numbered(0, 2))
    assert list_sources([f"{tmp_path}/{{04..04}}.tar"]).num_rows == 2


STRANGE = [
    "/etc/passwd.mp4",
    "../../up.mp4",
    "a#b.mp4",
    "x" * 300 + ".mp4",
    "ü 日本.mp4",
    "a\nb.mp4",
    "?x=1.mp4",
    "%2F.mp4",
]


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_names_are_names_and_no_paths(tmp_path: Path, kind: int) -> None:
    names = [*STRANGE, "x" * 5000 + ".mp4", "./dotted.mp4", "b\udcff.mp4"]
    (tmp_path / "a#1.tar").write_bytes(make_tar(*((name, str(n).encode()) for n, name in enumerate(names)), kind=kind))
    rows = list_sources([str(tmp_path)]).to_pylist()
    start = f"{tmp_path}/a#1.tar#"
    found = {row["uri"].removeprefix(start): taken(row) for row in rows}
    assert found == {name.replace("\udcff", "\\xff"): str(n).encode() for n, name in enumerate(names)}


def test_names_of_members_behind_a_url_are_no_parameters() -> None:
    data = make_tar(("v.mp4?sig=1.mp4", b"one"), ("v.mp4?sig=2.mp4", b"two"))
    with RangeServer({"a.tar": data, "a.tar?download=1": data}) as server:
        assert contents(f"{server.url}/a.tar?download=1") == {"v.mp4?sig=1.mp4": b"one", "v.mp4?sig=2.mp4": b"two"}


def test_of_members_with_one_name_the_last_counts_and_the_others_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(make_tar(("v.mp4", b"old"), ("w.mp4", b"w"), ("v.mp4", b"new")))
    assert contents(str(tmp_path)) == {"v.mp4": b"new", "w.mp4": b"w"}
    left: Counter[str] = Counter()
    list_sources([str(tmp_path)], left=left)
    assert left == {"of a name that comes again in its tar file": 1}


def test_an_object_that_is_called_as_a_member_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(make_tar(("v.mp4", b"in")))
    (tmp_path / "a.tar#v.mp4").write_bytes(b"beside")
    with pytest.raises(UsageError, match="same URI"):
        list_sources([str(tmp_path)])


def test_links_and_sparse_members_are_rows_that_are_not_followed(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)):
            info = tarfile.TarInfo(f"{number}.mp4")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("sparse.mp4")
        info.size, info.pax_headers = 4, {"GNU.sparse.map": "0,4", "GNU.sparse.size": "4096"}
        tar.addfile(info, io.BytesIO(b"data"))
        folder = tarfile.TarInfo("folder.mp4")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    (tmp_path / "a.tar").write_bytes(file.getvalue())
    names = ["0.mp4", "1.mp4", "2.mp4", "3.mp4", "sparse.mp4"]
    assert contents(str(tmp_path)) == dict.fromkeys(names, Status.UNSUPPORTED)


def cut_in_a_member(data: bytes) -> bytes:
    return data[: 512 * 7 + 3]


def cut_after_a_member(data: bytes) -> bytes:
    return data[: 512 * 6]


def overwritten_header(data: bytes) -> bytes:
    return data[: 512 * 6] + b"\x55" * 512 + data[512 * 7 :]


def negative_size(data: bytes) -> bytes:
    header = tarfile.TarInfo("3.mp4")
    header.size = -(512 * 4)
    return data[: 512 * 6] + header.tobuf(tarfile.GNU_FORMAT) + data[512 * 7 :]


def name_of_gigabytes(data: bytes) -> bytes:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    return data[: 512 * 6] + header.tobuf(tarfile.GNU_FORMAT) + data[512 * 7 :]


def names_without_end(data: bytes) -> bytes:
    header = tarfile.TarInfo("././@LongLink")
    header.type = tarfile.GNUTYPE_LONGNAME
    return data[: 512 * 6] + header.tobuf(tarfile.GNU_FORMAT) * 5000


@pytest.mark.parametrize(
    "damage",
    [cut_after_a_member, overwritten_header, negative_size, name_of_gigabytes, names_without_end],
)
def test_members_before_a_damage_are_rows_and_the_tar_is_one_too(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    (tmp_path / "a.tar").write_bytes(damage(numbered(0, 6)))
    before = {f"{number}.mp4": f"video {number}".encode() for number in range(3)}
    assert contents(str(tmp_path)) == before | {"a.tar": Status.CORRUPT}


def test_a_member_that_was_cut_off_is_a_row_too(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(cut_in_a_member(numbered(0, 6)))
    before = {f"{number}.mp4": f"video {number}".encode() for number in range(3)}
    assert contents(str(tmp_path)) == before | {"3.mp4": Status.CORRUPT, "a.tar": Status.CORRUPT}


@pytest.mark.parametrize("data", [b"", b"no tar", b"\x1f\x8b" + bytes(2000)])
def test_what_is_no_tar_is_one_row(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    assert contents(str(tmp_path)) == {"a.tar": Status.CORRUPT}


def test_tars_without_videos_are_nothing_found(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(make_tar(("notes.md", b"x")))
    with pytest.raises(UsageError, match=r"nothing found.*members of tar files.*1 \.md"):
        list_sources([str(tmp_path)])


def test_a_tar_without_videos_beside_videos_is_none(tmp_path: Path) -> None:
    (tmp_path / "docs.tar").write_bytes(make_tar(("notes.md", b"x")))
    (tmp_path / "a.mp4").write_bytes(b"a")
    left: Counter[str] = Counter()
    (row,) = list_sources([str(tmp_path)], left=left).to_pylist()
    assert (row["uri"], left) == (str(tmp_path / "a.mp4"), {".md": 1})


def test_large_members_are_jumped_over(tmp_path: Path) -> None:
    fetched: list[int] = []
    large = bytes(3_000_000)
    with RangeServer({"a.tar": make_tar(("a.mp4", large), ("b.mp4", large), ("c.mp4", b"end"))}) as server:
        server.on_range = lambda start, stop: fetched.append(stop - start)
        assert list_sources([f"{server.url}/a.tar"]).num_rows == 3
    assert sum(fetched) < len(large)
