"""The filter's program does what its table says, on both architectures: it is run here as the kernel would run it."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest

from vidray.sandbox import seccomp
from vidray.sandbox.seccomp import ALLOW, DENIED, ERROR, KILL, MACHINES, NEWEST_KNOWN_CALL, make_program

PID = 4242
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
I386, ARM, RISCV64 = 0x40000003, 0x40000028, 0xC00000F3
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
"""Where Debian has them; the second is what arm64 takes its numbers from."""
NEEDED = {
    "x86_64": {
        "read": 0, "write": 1, "close": 3, "fstat": 5, "poll": 7, "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11,
        "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "pread64": 17, "madvise": 28,
        "setitimer": 38, "recvfrom": 45, "mremap": 25, "getpid": 39, "exit": 60, "futex": 202, "clock_gettime": 228,
        "exit_group": 231, "sched_getaffinity": 204, "getrandom": 318, "memfd_create": 319, "close_range": 436,
    },
    "aarch64": {
        "read": 63, "write": 64, "close": 57, "fstat": 80, "ppoll": 73, "lseek": 62, "mmap": 222, "mprotect": 226,
        "munmap": 215, "brk": 214, "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139, "pread64": 67,
        "madvise": 233, "setitimer": 103, "recvfrom": 207, "mremap": 216, "getpid": 172, "exit": 93, "futex": 98,
        "clock_gettime": 113, "exit_group": 94, "sched_getaffinity": 123, "getrandom": 278, "memfd_create": 279,
        "close_range": 436,
    },
}  # fmt: skip
"""What a decoder or Python calls."""


def run(program: list[seccomp.Instruction], number: int, *arguments: int, arch: int) -> int:
    """What the kernel's machine returns for a call. It has one register, and only jumps forward."""
    data = struct.pack("=IIQ6Q", number & 0xFFFFFFFF, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    register, position = 0, 0
    while True:
        code, if_true, if_false, k = program[position]
        position += 1
        if code == 0x20:
            (register,) = struct.unpack_from("=I", data, k)
        elif code == 0x06:
            return k
        else:
            holds = {0x15: register == k, 0x25: register > k, 0x35: register >= k}[code]
            position += if_true if holds else if_false


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> str:
    return request.param


def answer(machine: str, number: int, *arguments: int) -> int:
    return run(make_program(machine, pid=PID), number, *arguments, arch=ARCH[machine])


def column(machine: str) -> int:
    return MACHINES.index(machine)


def test_each_denied_call_gets_its_error(machine: str) -> None:
    for group in DENIED:
        for name, numbers in group.calls.items():
            number = numbers[column(machine)]
            if number is not None:
                assert answer(machine, number) == ERROR | group.error, name


def test_files_are_answered_as_without_permission_and_all_else_as_not_allowed() -> None:
    errors = {name: group.error for group in DENIED for name in group.calls}
    assert {errors[name] for name in ("open", "openat", "openat2", "stat", "statx", "chmod")} == {errno.EACCES}
    assert {errors[name] for name in ("socket", "clone", "execve", "ptrace", "bpf", "mount")} == {errno.EPERM}
    assert errors["clone3"] == errno.ENOSYS, "so that the C library takes clone"


def test_what_decoding_needs_is_allowed(machine: str) -> None:
    for name, number in NEEDED[machine].items():
        assert answer(machine, number) == ALLOW, name


def test_every_other_known_call_is_allowed_or_decided_by_an_argument(machine: str) -> None:
    """So nothing is denied that is not in the table."""
    denied = {numbers[column(machine)] for group in DENIED for numbers in group.calls.values()}
    decided = {call.numbers[column(machine)] for call in seccomp.restricted_calls(PID)}
    for number in set(range(NEWEST_KNOWN_CALL + 1)) - denied - decided:
        assert answer(machine, number) == ALLOW, number


@pytest.mark.parametrize("number", [NEWEST_KNOWN_CALL + 1, 600, 0x3FFFFFFF])
def test_calls_that_were_invented_later_are_not_there(machine: str, number: int) -> None:
    assert answer(machine, number) == ERROR | errno.ENOSYS


@pytest.mark.parametrize("arch", [I386, ARM, RISCV64])
def test_calls_of_another_architecture_kill(machine: str, arch: int) -> None:
    assert run(make_program(machine, pid=PID), 0, arch=arch) == KILL
    other = next(arch for name, arch in ARCH.items() if name != machine)
    assert run(make_program(machine, pid=PID), 0, arch=other) == KILL


def test_calls_of_x32_kill() -> None:
    for number in (0x40000000, 0x40000000 + 39, 0x40000000 + 520, 0xFFFFFFFF, -1):
        assert answer("x86_64", number) == KILL


SENDTO, FCNTL, IOCTL = (44, 206), (72, 25), (16, 29)
PRCTL, PRLIMIT, KILL_CALL, TKILL, TGKILL = (157, 167), (302, 261), (62, 129), (200, 130), (234, 131)
HIGH = 1 << 32


@pytest.mark.parametrize(
    ("numbers", "arguments", "error"),
    [
        (SENDTO, (3, 1000, 8, 0, 0, 0), 0),
        (SENDTO, (3, 1000, 8, 0, 1000, 16), errno.EPERM),
        (SENDTO, (3, 1000, 8, 0, HIGH, 16), errno.EPERM),
        (FCNTL, (3, 1030), 0),  # F_DUPFD_CLOEXEC
        (FCNTL, (3, 3), 0),  # F_GETFL
        (FCNTL, (3, 8, PID), errno.EPERM),  # F_SETOWN
        (FCNTL, (3, 10, 9), errno.EPERM),  # F_SETSIG
        (FCNTL, (3, 15), errno.EPERM),  # F_SETOWN_EX
        (FCNTL, (3, HIGH + 3), errno.EPERM),
        (IOCTL, (3, 0x5421), 0),  # FIONBIO
        (IOCTL, (3, 0x8901), errno.ENOTTY),  # FIOSETOWN
        (IOCTL, (3, 0x5412), errno.ENOTTY),  # TIOCSTI
        (IOCTL, (3, 0x8912), errno.ENOTTY),  # SIOCGIFCONF
        (PRCTL, (15,), 0),  # PR_SET_NAME
        (PRCTL, (4, 1), errno.EPERM),  # PR_SET_DUMPABLE
        (PRCTL, (HIGH + 4, 1), errno.EPERM),  # the kernel takes 32 bits of it
        (PRLIMIT, (0, 7), 0),
        (PRLIMIT, (PID, 7), 0),
        (PRLIMIT, (1, 7), errno.EPERM),
        (KILL_CALL, (PID, 9), 0),
        (KILL_CALL, (1, 0), errno.EPERM),
        (KILL_CALL, (0, 9), errno.EPERM),  # its group
        (KILL_CALL, (0xFFFFFFFF, 9), errno.EPERM),  # -1: everybody
        (KILL_CALL, (2**64 - PID, 9), errno.EPERM),  # another group
        (TKILL, (PID, 6), 0),
        (TKILL, (PID + 1, 6), errno.EPERM),
        (TGKILL, (PID, PID, 6), 0),  # abort(3)
        (TGKILL, (PID + 1, PID + 1, 6), errno.EPERM),
    ],
)
def test_calls_that_an_argument_decides(machine: str, numbers: tuple, arguments: tuple, error: int) -> None:
    assert answer(machine, numbers[column(machine)], *arguments) == (ERROR | error if error else ALLOW)


def test_no_call_is_in_the_table_twice(machine: str) -> None:
    numbers = [numbers[column(machine)] for group in DENIED for numbers in group.calls.values()]
    numbers += [call.numbers[column(machine)] for call in seccomp.restricted_calls(PID)]
    numbers = [number for number in numbers if number is not None]
    assert len(numbers) == len(set(numbers))


def test_numbers_are_those_of_the_kernels_headers(machine: str) -> None:
    """As far as the headers that are installed go; later numbers are the same everywhere."""
    header = HEADERS[machine]
    if not header.exists():
        pytest.skip(f"{header} is not installed")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)$", header.read_text(), re.MULTILINE)
    known = {name: int(number) for name, number in found}
    known.setdefault("newfstatat", known.get("fstatat", -1))
    ours = {name: numbers for group in DENIED for name, numbers in group.calls.items()}
    ours |= {call.name: call.numbers for call in seccomp.restricted_calls(PID)}
    for name, numbers in ours.items():
        number = numbers[column(machine)]
        if number is not None and number <= max(known.values()):
            assert known[name] == number, name
        elif number is None:
            assert name not in known, name
        else:
            assert numbers[0] == numbers[1], name


def test_the_kernel_takes_programs_of_this_length(machine: str) -> None:
    program = make_program(machine, pid=PID)
    assert len(program) <= 4096
    assert max(instruction.if_true for instruction in program) <= 255
    assert max(instruction.if_false for instruction in program) <= 255
