"""The filter of system calls: what a decoder never needs is answered with an error, whoever asks for it.

A list of what is denied, because a list of what is allowed breaks with the next C library. Its weakness, calls that are
invented later, is met by answering "no such call" to all that are newer than the list, as an older kernel would.

The filter is a program of the kernel's own small machine (classic BPF). It sees a call's number and its arguments as
numbers; it cannot look at what they point to, such as a path. It stays in force until the process ends.

Sources. The interface: seccomp(2), https://docs.kernel.org/userspace-api/seccomp_filter.html. Numbers of calls:
``arch/x86/entry/syscalls/syscall_64.tbl`` and ``scripts/syscall.tbl`` of Linux. What others deny:
https://docs.docker.com/engine/security/seccomp/, Chromium's ``sandbox/linux/seccomp-bpf-helpers/baseline_policy.cc``
and OpenSSH's ``sandbox-seccomp-filter.c``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

# -- what is denied --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Denied:
    """Calls that are answered with an error whatever their arguments."""

    why: str
    error: int
    calls: dict[str, tuple[int | None, int | None]]
    """Name → number on x86-64 and on arm64; None: not there."""


# fmt: off
DENIED = (
    Denied(why="no file is opened, also none by handle", error=errno.EACCES, calls={
        "open": (2, None), "creat": (85, None), "openat": (257, 56), "openat2": (437, 437), "uselib": (134, None),
        "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "open_tree": (428, 428),
        "open_tree_attr": (467, 467), "mq_open": (240, 180),
    }),
    Denied(why="nothing says which paths exist (a filter cannot tell fstat(fd) from a path: see newfstatat)",
           error=errno.EACCES, calls={
        "stat": (4, None), "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291), "access": (21, None),
        "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, None), "readlinkat": (267, 78),
        "getdents": (78, None), "getdents64": (217, 61), "statfs": (137, 43), "ustat": (136, None), "chdir": (80, 49),
        "fchdir": (81, 50), "inotify_add_watch": (254, 27), "fanotify_init": (300, 262), "fanotify_mark": (301, 263),
        "getxattr": (191, 8), "lgetxattr": (192, 9), "fgetxattr": (193, 10), "getxattrat": (464, 464),
        "listxattr": (194, 11), "llistxattr": (195, 12), "flistxattr": (196, 13), "listxattrat": (465, 465),
        "file_getattr": (468, 468),
    }),
    Denied(why="no file or folder is changed, nor what is written about it", error=errno.EACCES, calls={
        "truncate": (76, 45), "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276), "mkdir": (83, None),
        "mkdirat": (258, 34), "rmdir": (84, None), "link": (86, None), "linkat": (265, 37), "symlink": (88, None),
        "symlinkat": (266, 36), "unlink": (87, None), "unlinkat": (263, 35), "mknod": (133, None),
        "mknodat": (259, 33), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
        "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None),
        "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5),
        "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463), "removexattr": (197, 14),
        "lremovexattr": (198, 15), "fremovexattr": (199, 16), "removexattrat": (466, 466), "file_setattr": (469, 469),
        "mq_unlink": (241, 181),
    }),
    Denied(why="no socket but the control socket, which is connected already and passes no descriptors",
           error=errno.EPERM, calls={
        "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
        "accept": (43, 202), "accept4": (288, 242), "sendmsg": (46, 211), "sendmmsg": (307, 269), "recvmsg": (47, 212),
        "recvmmsg": (299, 243), "getsockopt": (55, 209), "setsockopt": (54, 208),
    }),
    Denied(why="no process, no thread, no other program", error=errno.EPERM, calls={
        "fork": (57, None), "vfork": (58, None), "clone": (56, 220), "execve": (59, 221), "execveat": (322, 281),
    }),
    Denied(why="so that the C library takes clone instead, whose error it passes on", error=errno.ENOSYS, calls={
        "clone3": (435, 435),
    }),
    Denied(why="no other process is read, changed, watched or slowed down", error=errno.EPERM, calls={
        "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
        "process_madvise": (440, 440), "process_mrelease": (448, 448), "pidfd_open": (434, 434),
        "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "kcmp": (312, 272), "perf_event_open": (298, 241),
        "move_pages": (279, 239), "migrate_pages": (256, 238), "setpriority": (141, 140), "ioprio_set": (251, 30),
        "sched_setaffinity": (203, 122), "sched_setattr": (314, 274), "sched_setparam": (142, 118),
        "sched_setscheduler": (144, 119), "setpgid": (109, 154), "setsid": (112, 157),
    }),
    Denied(why="no memory, semaphores or queues (System V) that are shared by number with whoever knows it",
           error=errno.EPERM, calls={
        "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193),
        "semtimedop": (220, 192), "semctl": (66, 191), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188),
        "msgctl": (71, 187),
    }),
    Denied(why="no other user, no privilege, no other way of running", error=errno.EPERM, calls={
        "setuid": (105, 146), "setgid": (106, 144), "setreuid": (113, 145), "setregid": (114, 143),
        "setresuid": (117, 147), "setresgid": (119, 149), "setfsuid": (122, 151), "setfsgid": (123, 152),
        "setgroups": (116, 159), "capset": (126, 91), "personality": (135, 92), "lsm_set_self_attr": (460, 460),
        "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None),
    }),
    Denied(why="no other namespace, root or mount", error=errno.EPERM, calls={
        "unshare": (272, 97), "setns": (308, 268), "chroot": (161, 51), "pivot_root": (155, 41), "mount": (165, 40),
        "umount2": (166, 39), "move_mount": (429, 429), "mount_setattr": (442, 442), "fsopen": (430, 430),
        "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "statmount": (457, 457),
        "listmount": (458, 458), "listns": (470, 470),
    }),
    Denied(why="parts of the kernel that a decoder has no use for, and in which faults were found", error=errno.EPERM,
           calls={
        "bpf": (321, 280), "userfaultfd": (323, 282), "add_key": (248, 217), "request_key": (249, 218),
        "keyctl": (250, 219), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
        "io_uring_register": (427, 427), "io_setup": (206, 0), "io_submit": (209, 2), "splice": (275, 76),
        "tee": (276, 77), "vmsplice": (278, 75), "sendfile": (40, 71), "copy_file_range": (326, 285),
        "remap_file_pages": (216, 234), "memfd_secret": (447, 447), "lookup_dcookie": (212, 18), "syslog": (103, 116),
    }),
    Denied(why="what concerns the whole machine", error=errno.EPERM, calls={
        "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
        "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
        "acct": (163, 89), "quotactl": (179, 60), "quotactl_fd": (443, 443), "settimeofday": (164, 170),
        "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171), "sethostname": (170, 161),
        "setdomainname": (171, 162), "vhangup": (153, 58), "sync": (162, 81), "syncfs": (306, 267),
    }),
)
# fmt: on

NEWEST_KNOWN_CALL = 470
"""``listns``, of Linux 6.19. Later numbers are the same on every architecture; all of them are answered with ENOSYS."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Restricted:
    """A call that is allowed or not by one of its arguments."""

    why: str
    name: str
    numbers: tuple[int, int]
    """On x86-64 and on arm64."""
    argument: int
    """Which argument decides, from 0."""
    only: tuple[int, ...] = ()
    """Values that are allowed, if any are named: then no others are."""
    never: tuple[int, ...] = ()
    """Values that are denied, if any are named: then all others are allowed."""
    error: int = errno.EPERM


_DUPLICATES_FLAGS_AND_SEALS = (0, 1, 2, 3, 4, 1030, 1033, 1034)
_CLOSE_ON_EXEC_BLOCKING_AND_WHAT_IS_A_TERMINAL = (0x5450, 0x5451, 0x5421, 0x541B, 0x5401)
_PR_SET_DUMPABLE = 4


def restricted_calls(pid: int) -> tuple[Restricted, ...]:
    """The calls that process ``pid`` may make with some arguments."""
    itself = "it may signal and limit itself (abort does), and nobody else"
    return (
        Restricted(
            why="to the other end of a connected socket, never to an address",
            name="sendto",
            numbers=(44, 206),
            argument=4,
            only=(0,),
        ),
        Restricted(
            why="not to whom signals are sent when a descriptor is ready",
            name="fcntl",
            numbers=(72, 25),
            argument=1,
            only=_DUPLICATES_FLAGS_AND_SEALS,
        ),
        Restricted(
            why="not the addresses of the machine's network, which any socket tells",
            name="ioctl",
            numbers=(16, 29),
            argument=1,
            only=_CLOSE_ON_EXEC_BLOCKING_AND_WHAT_IS_A_TERMINAL,
            error=errno.ENOTTY,
        ),
        Restricted(
            why="its memory stays closed to others, and out of core dumps",
            name="prctl",
            numbers=(157, 167),
            argument=0,
            never=(_PR_SET_DUMPABLE,),
        ),
        Restricted(why=itself, name="prlimit64", numbers=(302, 261), argument=0, only=(0, pid)),
        Restricted(why=itself, name="kill", numbers=(62, 129), argument=0, only=(pid,)),
        Restricted(why=itself, name="tkill", numbers=(200, 130), argument=0, only=(pid,)),
        Restricted(why=itself, name="tgkill", numbers=(234, 131), argument=0, only=(pid,)),
        Restricted(why=itself, name="rt_sigqueueinfo", numbers=(129, 138), argument=0, only=(pid,)),
        Restricted(why=itself, name="rt_tgsigqueueinfo", numbers=(297, 240), argument=0, only=(pid,)),
    )


# -- the program -----------------------------------------------------------------------------------------------------

MACHINES = ("x86_64", "aarch64")
"""Kinds of CPU for which there are numbers, by the name that uname(2) has for them."""
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_CALLS = 0x40000000
"""On x86-64 these numbers are the same calls again, for 32-bit pointers."""

ALLOW, KILL, ERROR = 0x7FFF0000, 0x80000000, 0x00050000
"""What a program may return; the low 16 bits of ``ERROR`` are the error's number."""
LOAD, EQUAL, GREATER, AT_LEAST, RETURN = 0x20, 0x15, 0x25, 0x35, 0x06
"""Kinds of instructions: load 32 bits of the call's description; compare with k; return k."""
_NUMBER_OFFSET, _ARCH_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16
"""Where ``struct seccomp_data`` has them. Arguments are of 64 bits, the low half first on both architectures."""


class Instruction(NamedTuple):
    """``struct sock_filter``. Jumps count from the next instruction."""

    code: int
    if_true: int
    if_false: int
    k: int


def make_program(machine: str, *, pid: int) -> list[Instruction]:
    """The filter of process ``pid`` on a kind of machine, one of ``MACHINES``."""
    column = MACHINES.index(machine)
    program = [_load(_ARCH_OFFSET), *_unless(EQUAL, _AUDIT_ARCH[machine], KILL), _load(_NUMBER_OFFSET)]
    if machine == "x86_64":
        program += _when(AT_LEAST, _X32_CALLS, KILL)
    program += _when(GREATER, NEWEST_KNOWN_CALL, ERROR | errno.ENOSYS)
    for call in restricted_calls(pid):
        block = list(_decide(call))
        program += [Instruction(EQUAL, 0, len(block), call.numbers[column]), *block]
    for group in DENIED:
        for numbers in group.calls.values():
            number = numbers[column]
            if number is not None:
                program += _when(EQUAL, number, ERROR | group.error)
    return [*program, _return(ALLOW)]


def _decide(call: Restricted) -> Iterator[Instruction]:
    """The end of a program for one call: returns by its argument."""
    offset = _ARGUMENTS_OFFSET + 8 * call.argument
    if call.only:  # the kernel may use all 64 bits, or 32
        yield _load(offset + 4)
        yield from _unless(EQUAL, 0, ERROR | call.error)
    yield _load(offset)
    for value in call.only or call.never:
        yield from _when(EQUAL, value, ALLOW if call.only else ERROR | call.error)
    yield _return(ERROR | call.error if call.only else ALLOW)


def _load(offset: int) -> Instruction:
    return Instruction(LOAD, 0, 0, offset)


def _return(value: int) -> Instruction:
    return Instruction(RETURN, 0, 0, value)


def _when(comparison: int, k: int, value: int) -> tuple[Instruction, Instruction]:
    return Instruction(comparison, 0, 1, k), _return(value)


def _unless(comparison: int, k: int, value: int) -> tuple[Instruction, Instruction]:
    return Instruction(comparison, 1, 0, k), _return(value)


# -- the kernel's side -----------------------------------------------------------------------------------------------

_SECCOMP_CALL = {"x86_64": 317, "aarch64": 277}
_SECCOMP_SET_MODE_FILTER = 1
_ALL_THREADS = 1
"""Should a library have started threads, they get the filter too."""
_WITHOUT_MITIGATIONS = 4
"""Before 5.16, Linux else turns on mitigations against Spectre together with a filter, which make decoding slower. They
keep code from memory of its own process, and this one has nothing to hide from its decoder. Not known to Linux before
4.17 nor to gVisor."""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def install() -> int:
    """Put the filter in force for this process, for good; it must have given up gaining privileges.

    Returns:
        0, or the number of the error that kept it from it: ENOTSUP on a machine that is not in ``MACHINES``, EPERM or
        EACCES where a policy forbids it (a container's, for instance), ENOSYS or EINVAL where the kernel has no
        filters.
    """
    machine = os.uname().machine
    if machine not in MACHINES or sys.maxsize < 2**32:
        return errno.ENOTSUP
    program = make_program(machine, pid=os.getpid())
    packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    libc = ctypes.CDLL(None, use_errno=True)
    argument = ctypes.byref(_Program(len(program), packed))
    for flags in (_ALL_THREADS | _WITHOUT_MITIGATIONS, _ALL_THREADS):
        result = libc.syscall(_SECCOMP_CALL[machine], _SECCOMP_SET_MODE_FILTER, ctypes.c_ulong(flags), argument)
        error = ctypes.get_errno() if result < 0 else errno.EBUSY if result > 0 else 0  # above 0: a thread refuses
        if error != errno.EINVAL:
            break
    return error
