"""What a decoder that was taken over can do: as root, as an ordinary user, and where a line of defence is missing.

Each try is made for real, by a child that has no decoder (``tests.support.hostile``). The last way of running is the
control: nothing is taken from the child, and the same tries succeed. The table of docs/security.md is made from this.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.sandbox.test_hostile import GOOD_FILES, good_file
from tests.support.hostile.anyone import run_as_ordinary_user
from tests.support.hostile.tries import TRIES
from tests.support.recording_child import RECORD
from tests.support.videos import audio_only, truncated
from vidray.errors import RunError, VideoError
from vidray.sandbox.confinement import Confinement
from vidray.sandbox.sandbox import Sandbox
from vidray.types import Limits, ViewConfig

ROOT = Path(__file__).resolve().parents[2]
VIEW = ViewConfig(num_frames=4, size=32, num_clips=2)
LIMITS = Limits(decode_timeout_seconds=20, decode_memory_bytes=256 * 1024**2)

WAYS = ("as root", "as a user", "without Landlock", "without seccomp", "with nothing")
"""Those without something are of an ordinary user."""
_CHILDREN = {"without Landlock": "unlocked_child", "without seccomp": "unfiltered_child", "with nothing": "free_child"}


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What comes of a try."""

    filtered: str
    """With the filter of system calls, whoever runs it and whether there is Landlock or not."""
    landlock: str
    """With Landlock alone, of version 6 to 8."""
    control: tuple[str, ...]
    """With nothing; further ones where kernels are built or set up in other ways."""
    closed_by: str = "seccomp"
    behind_it: str = "Landlock"
    """What closes it without seccomp, if anything does."""

    def on(self, way: str) -> tuple[str, ...]:
        """On this way of running."""
        return {"without seccomp": (self.landlock,), "with nothing": self.control}.get(way, (self.filtered,))


def row(filtered: str, landlock: str, *control: str, **by: str) -> Expected:
    return Expected(filtered=filtered, landlock=landlock, control=control, **by)


EXPECTED = {
    "open a file": row("EACCES", "EACCES", "done"),
    "open a file with openat2": row("EACCES", "EACCES", "done"),
    "open a file for its path alone (O_PATH)": row("EACCES", "done", "done"),
    "make a handle of a file": row("EACCES", "done", "done", "EOPNOTSUPP"),
    "make a file": row("EACCES", "EACCES", "done"),
    "read the parent's environment": row("EACCES", "EACCES", "done"),
    "open the parent's memory": row("EACCES", "EACCES", "done", "EACCES"),
    "list a folder": row("EACCES", "EACCES", "done"),
    "stat a path": row("EACCES", "done", "done"),
    "stat a path with statx": row("EACCES", "done", "done"),
    "stat a path as if it were a descriptor": row("EACCES", "done", "done"),
    "ask for access to a path": row("EACCES", "done", "done"),
    "read a link": row("EACCES", "done", "done"),
    "read extended attributes": row("EACCES", "done", "done"),
    "change the folder": row("EACCES", "done", "done"),
    "watch a folder": row("EACCES", "done", "done"),
    "unlink a file": row("EACCES", "EACCES", "done"),
    "rename a file": row("EACCES", "EACCES", "done"),
    "truncate a file": row("EACCES", "EACCES", "done"),
    "change a file's mode": row("EACCES", "done", "done"),
    "change a file's times": row("EACCES", "done", "done"),
    "link a file": row("EACCES", "EACCES", "done"),
    "make a symbolic link": row("EACCES", "EACCES", "done"),
    "make a folder": row("EACCES", "EACCES", "done"),
    "connect over TCP": row("EPERM", "EACCES", "reached"),
    "connect over multipath TCP": row("EPERM", "reached", "reached", "EPROTONOSUPPORT", "ENOPROTOOPT"),
    "listen on a TCP port": row("EPERM", "EACCES", "done"),
    "send a UDP datagram": row("EPERM", "reached", "reached"),
    "connect to a socket at a path": row("EPERM", "reached", "reached"),
    "send a datagram to a socket at a path": row("EPERM", "reached", "reached"),
    "connect to an abstract socket": row("EPERM", "EPERM", "reached"),
    "make a pair of sockets": row("EPERM", "done", "done"),
    "open a netlink socket": row("EPERM", "done", "done"),
    "send the parent a descriptor": row("EPERM", "reached", "reached"),
    "list the network's addresses": row("ENOTTY", "done", "done"),
    "start a process": row("EPERM", "EAGAIN", "done", behind_it="limits"),
    "start a thread": row("RuntimeError", "RuntimeError", "done", behind_it="limits"),
    "start a process with clone3": row("ENOSYS", "EAGAIN", "done", behind_it="limits"),
    "run a program": row("EPERM", "EACCES", "done"),
    "signal the parent": row("EPERM", "EPERM", "reached"),
    "signal the parent's thread": row("EPERM", "EPERM", "reached"),
    "queue a signal to the parent": row("EPERM", "EPERM", "reached"),
    "have a descriptor signal the parent": row("EPERM", "lost", "reached"),
    "get a handle of the parent": row("EPERM", "done", "done"),
    "get a handle of the parent from its socket": row("EPERM", "done", "done", "ENOPROTOOPT"),
    "take a descriptor from the parent": row("EPERM", "EPERM", "done", "EPERM"),
    "trace the parent": row("EPERM", "EPERM", "done", "EPERM"),
    "read the parent's memory": row("EPERM", "EPERM", "done", "EPERM"),
    "compare itself with the parent": row("EPERM", "EPERM", "done", "EPERM", "ENOSYS"),
    "set the parent's limits": row("EPERM", "done", "done"),
    "slow the parent down": row("EPERM", "done", "done"),
    "move the parent to other CPUs": row("EPERM", "done", "done"),
    "raise its memory limit": row("EPERM", "EPERM", "done", closed_by="limits", behind_it="limits"),
    "take more memory than it may": row("MemoryError", "MemoryError", "done", closed_by="limits", behind_it="limits"),
    "grow the output memory": row("EFBIG", "EFBIG", "EPERM", closed_by="limits", behind_it="limits"),
    "write to the video": row("EBADF", "EBADF", "EBADF", closed_by="read-only", behind_it="read-only"),
    "become dumpable": row("EPERM", "done", "done"),
    "become another user": row("EPERM", "done", "done"),
    "make a user namespace": row("EPERM", "done", "done", "EPERM", "ENOSPC"),
    "open a mount": row("EACCES", "done", "done"),
    "use io_uring": row("EPERM", "done", "done", "EPERM", "ENOSYS"),
    "use userfaultfd": row("EPERM", "done", "done", "ENOSYS"),
    "use the kernel's keys": row("EPERM", "done", "done", "ENOSYS"),
    "share memory by number": row("EPERM", "done", "done"),
    "change the personality": row("EPERM", "done", "done"),
    "call as a 32-bit program": row("SIGSYS", "done", "done", "the decoder died of SIGSEGV while decoding", "ENOSYS"),
    "call as an x32 program": row("SIGSYS", "ENOSYS", "ENOSYS", "done"),
    "signal itself": row("done", "done", "done"),
    "ask for the host's name": row("done", "done", "done"),
    "make memory of its own": row("done", "done", "done"),
}
"""By what is tried, each with or without something. The names of errors are the kernel's."""

OPEN = "**open**"
ALWAYS_OPEN = {"signal itself", "ask for the host's name", "make memory of its own"}


@functools.cache
def found(way: str, beside: Path) -> dict:
    """What came of every try on one way of running."""
    child = _CHILDREN.get(way, "child")
    command = [sys.executable, "-m", "tests.support.hostile.parent", f"tests.support.hostile.{child}"]
    if way == "as root":
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    else:
        done = run_as_ordinary_user(command, beside=beside, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("python")


def skip_what_cannot_run_here(way: str, landlock_version: int) -> None:
    if way == "as root" and os.geteuid() != 0:
        pytest.skip("these tests are not run as root")
    if way == "without seccomp" and not 6 <= landlock_version <= 8:
        pytest.skip(f"what is written down is of Landlock 6 to 8, here is {landlock_version}")


@functools.cache
def landlock_version() -> int:
    with Sandbox(view=VIEW, limits=LIMITS) as sandbox:
        sandbox.decode(good_file("mp4"))
        assert sandbox.confinement is not None
        return sandbox.confinement.landlock_version


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", TRIES)
def test_what_comes_of_a_try(name: str, way: str, beside: Path) -> None:
    skip_what_cannot_run_here(way, landlock_version())
    assert found(way, beside)["found"][name] in EXPECTED[name].on(way)


def test_every_try_is_expected_and_nearly_all_are_stopped() -> None:
    assert set(EXPECTED) == set(TRIES)
    assert {name for name, expected in EXPECTED.items() if expected.filtered in ("done", "reached")} == ALWAYS_OPEN


@pytest.mark.parametrize("way", WAYS)
def test_the_level_that_is_reached_is_reported(way: str, beside: Path) -> None:
    skip_what_cannot_run_here(way, landlock_version())
    reported = found(way, beside)["confinement"]
    is_full = way in ("as root", "as a user", "without Landlock")
    assert reported.startswith("files, network and processes closed by the kernel") == is_full
    assert ("seccomp" in reported) == is_full
    has_landlock = way not in ("without Landlock", "with nothing") and landlock_version() > 0
    assert (f"Landlock {landlock_version()}" in reported) == has_landlock


def table_of_tries() -> str:
    """The table of docs/security.md, in Markdown."""
    ways = WAYS[:-1]
    lines = [f"| tried | {' | '.join(ways)} |", "|---" * (1 + len(ways)) + "|"]
    for name in EXPECTED:
        cells = [closer(name, way) for way in ways]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def closer(name: str, way: str) -> str:
    """What closes a try on one way of running."""
    expected = EXPECTED[name]
    if name in ALWAYS_OPEN:
        return OPEN
    if way != "without seccomp":
        return expected.closed_by
    return OPEN if expected.landlock == expected.control[0] and expected.closed_by == "seccomp" else expected.behind_it


def test_the_page_on_security_shows_these_results() -> None:
    assert table_of_tries() in (ROOT / "docs" / "security.md").read_text()


# -- the child itself ------------------------------------------------------------------------------------------------


def status_of(pid: int | None) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_a_child_has_one_thread_no_privilege_and_a_filter() -> None:
    with Sandbox(view=VIEW, limits=LIMITS) as sandbox:
        sandbox.decode(good_file("mp4"))
        status = status_of(sandbox.pid)
        assert Path(f"/proc/{sandbox.pid}/oom_score_adj").read_text().strip() == "1000"
    assert status["Threads"] == "1"
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_once_confined_a_child_imports_and_opens_nothing(sample_files: list[bytes]) -> None:
    """It could not: whatever a file brings a library to import late must be imported before."""
    with Sandbox(view=VIEW, limits=LIMITS, child_module="tests.support.recording_child") as sandbox:
        for data in sample_files:
            with contextlib.suppress(VideoError):
                sandbox.decode(data)
        with pytest.raises(VideoError) as caught:
            sandbox.decode(RECORD)
    assert json.loads(caught.value.message) == []


@pytest.fixture
def sample_files() -> list[bytes]:
    """Videos of all kinds, good and bad, also those that this machine has for tests."""
    good = [good_file(kind) for kind in GOOD_FILES]
    bad = [truncated(data, share) for data in good for share in (0.3, 0.9)] + [b"", b"no video", audio_only()]
    folder = os.environ.get("VIDRAY_SAMPLE_VIDEOS")
    samples = [path.read_bytes() for path in sorted(Path(folder).rglob("*.*"))] if folder else []
    return good + bad + samples


@pytest.mark.parametrize("child", ["unlocked", "unfiltered"])
def test_videos_decode_alike_whatever_confines_the_child(child: str) -> None:
    with (
        Sandbox(view=VIEW, limits=LIMITS) as sandbox,
        Sandbox(view=VIEW, limits=LIMITS, child_module=f"tests.support.{child}_poison_child") as other,
    ):
        for kind in GOOD_FILES:
            views, _ = sandbox.decode(good_file(kind))
            assert (views == other.decode(good_file(kind))[0]).all(), kind


# -- requiring it ----------------------------------------------------------------------------------------------------

FULL = Confinement(landlock_version=7)
REQUIRED = dataclasses.replace(LIMITS, require_sandbox=True)


def test_what_is_required_and_there_is_used() -> None:
    with Sandbox(view=VIEW, limits=REQUIRED) as sandbox:
        assert sandbox.confinement is None
        sandbox.decode(good_file("mp4"))
        assert sandbox.confinement is not None
        assert sandbox.confinement.is_full


def test_what_is_required_and_not_there_is_refused_with_the_reason() -> None:
    child = "tests.support.unfiltered_poison_child"
    with Sandbox(view=VIEW, limits=REQUIRED, child_module=child) as sandbox:
        with pytest.raises(RunError, match=r"--require-sandbox: .*seccomp is not in force: a policy forbids it.*EPERM"):
            sandbox.decode(good_file("mp4"))
        assert sandbox.pid is None
    with Sandbox(view=VIEW, limits=LIMITS, child_module=child) as sandbox:
        sandbox.decode(good_file("mp4"))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "files, network and processes closed by the kernel (Landlock 7, seccomp)"),
        (
            {"has_network_namespace": True},
            "files, network and processes closed by the kernel (Landlock 7, seccomp, network namespace)",
        ),
        (
            {"landlock_version": 0, "landlock_error": errno.ENOSYS},
            "files, network and processes closed by the kernel (seccomp)",
        ),
        (
            {"filter_error": errno.EPERM},
            "not all is closed by the kernel (Landlock 7): files cannot be opened, but looked at; network closed for "
            "TCP only; processes cannot be signalled or read, but started; memory limited",
        ),
        (
            {"filter_error": errno.EPERM, "landlock_version": 3, "has_network_namespace": True},
            "not all is closed by the kernel (Landlock 3, network namespace): files cannot be opened, but looked at; "
            "network closed but for sockets at a path; processes cannot be read, but signalled and started; memory "
            "limited",
        ),
        (
            {"filter_error": errno.ENOSYS, "landlock_version": 0, "landlock_error": errno.ENOSYS},
            "not all is closed by the kernel: files open; network open; processes open; memory limited",
        ),
        (
            {"has_fixed_limits": False},
            "not all is closed by the kernel (Landlock 7, seccomp): files closed; network closed; processes closed; "
            "memory not limited",
        ),
    ],
)
def test_a_level_is_one_line(changes: dict, text: str) -> None:
    confinement = dataclasses.replace(FULL, **changes)
    assert str(confinement) == text
    assert confinement.is_full == text.startswith("files, network")
    assert bool(confinement.what_is_missing()) != confinement.is_full


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"filter_error": errno.EACCES}, "a policy forbids it"),
        ({"filter_error": errno.EINVAL}, "built without it; take one with CONFIG_SECCOMP_FILTER"),
        ({"filter_error": errno.ENOTSUP}, "no list of this machine's system calls, only those of x86_64 and aarch64"),
        (
            {"filter_error": errno.EPERM, "landlock_version": 0, "landlock_error": errno.ENOSYS},
            "nor is Landlock: this kernel is older than 5.13",
        ),
        ({"has_fixed_limits": False}, "without the capability CAP_SYS_RESOURCE"),
        ({"filter_error": errno.EIO}, r"Input/output error \(EIO\)"),
    ],
)
def test_what_is_missing_is_said_with_what_to_do(changes: dict, reason: str) -> None:
    assert re.search(reason, dataclasses.replace(FULL, **changes).what_is_missing())


def test_landlock_has_a_version_or_an_error() -> None:
    with pytest.raises(ValueError, match="Landlock has a version or an error"):
        Confinement(landlock_version=7, landlock_error=errno.ENOSYS)
