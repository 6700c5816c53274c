"""What a decoder that was taken over might try: towards files and listeners of the test only, harmless if it succeeds.

A try returns where it succeeds, and raises OSError where it does not. Each does succeed where nothing stops an ordinary
user's process; calls that the kernel refuses to an ordinary user anyway are not here.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import mmap
import os
import resource
import signal
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What is tried on."""

    parent: int
    """The process that started this one."""
    address: int
    """Where 8 bytes lie in it."""
    folder: str
    """Belongs to the user; ``folder/file`` is made anew before each try."""
    tcp: int
    """Ports of 127.0.0.1 with somebody behind."""
    udp: int
    stream_path: str
    """Unix sockets with somebody behind."""
    datagram_path: str
    abstract: str
    control_fd: int
    input_fd: int
    output_fd: int

    @property
    def file(self) -> bytes:
        return os.fsencode(f"{self.folder}/file")

    @property
    def new(self) -> bytes:
        return os.fsencode(f"{self.folder}/new")


_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_IS_X86 = os.uname().machine == "x86_64"
_NUMBERS = {
    name: numbers[0 if _IS_X86 else 1]
    for name, numbers in {
        "statx": (332, 291),
        "name_to_handle_at": (303, 264),
        "userfaultfd": (323, 282),
        "keyctl": (250, 219),
        "kcmp": (312, 272),
        "clone3": (435, 435),
        "openat2": (437, 437),
        "pidfd_getfd": (438, 438),
        "io_uring_setup": (425, 425),
        "open_tree": (428, 428),
        "x32": (0x40000000 + 39, 0x40000000 + 39),
    }.items()
}


def _call(name: str, *arguments: Any) -> int:
    """A function of the C library, or a system call by its number. Raises OSError."""
    known = _NUMBERS.get(name)
    made = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = _libc.syscall(ctypes.c_long(known), *made) if known is not None else getattr(_libc, name)(*made)
    if result == -1:
        raise OSError(ctypes.get_errno(), name)
    return result


# -- files -----------------------------------------------------------------------------------------------------------


def _open(path: bytes | str, flags: int = os.O_RDONLY) -> None:
    os.close(os.open(path, flags))


def _open_with_openat2(t: Targets) -> None:
    os.close(_call("openat2", _AT_FDCWD, t.file, struct.pack("QQQ", os.O_RDONLY, 0, 0), 24))


def _name_to_handle(t: Targets) -> None:
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 136)
    _call("name_to_handle_at", _AT_FDCWD, t.file, handle, ctypes.byref(ctypes.c_int()), 0)


def _statx(t: Targets) -> None:
    _call("statx", _AT_FDCWD, t.file, 0, 0x7FF, ctypes.create_string_buffer(256))


def _stat_with_an_empty_path_flag(t: Targets) -> None:
    """The flag that fstat(3) passes, and yet a path."""
    _call("statx", _AT_FDCWD, t.file, 0x1000, 0x7FF, ctypes.create_string_buffer(256))


def _access(t: Targets) -> None:
    if not os.access(t.file, os.R_OK):
        raise OSError(ctypes.get_errno() or 13, "access")


def _watch(t: Targets) -> None:
    _call("inotify_add_watch", _call("inotify_init1", 0), os.fsencode(t.folder), 0x100)


# -- network ---------------------------------------------------------------------------------------------------------


def _connect(family: int, kind: int, protocol: int, address: Any) -> None:
    with socket.socket(family, kind, protocol) as connection:
        connection.settimeout(5)
        connection.connect(address)
        connection.send(b"x")


def _listen(t: Targets) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()


def _send_datagram(t: Targets) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", ("127.0.0.1", t.udp))


def _netlink(t: Targets) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as asker:
        asker.bind((0, 0))


def _send_descriptor(t: Targets) -> None:
    """To the parent, which does not look for any."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=os.dup(t.control_fd)) as control:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [t.input_fd]))]
        control.sendmsg([b"x"], rights)


def _list_interfaces(t: Targets) -> None:
    names = ctypes.create_string_buffer(4096)
    request = struct.pack("iP", len(names), ctypes.addressof(names))
    fcntl.ioctl(t.control_fd, 0x8912, request)  # SIOCGIFCONF


# -- processes -------------------------------------------------------------------------------------------------------


def _fork(t: Targets) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _start_thread(t: Targets) -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


def _clone3(t: Targets) -> None:
    arguments = struct.pack("8Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
    pid = _call("clone3", arguments, len(arguments))
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _queue_signal(t: Targets) -> None:
    _call("sigqueue", t.parent, signal.SIGUSR1, None)


def _have_it_signalled(t: Targets) -> None:
    """A descriptor that can be read sends a signal to its owner: any signal, such as SIGKILL."""
    read_fd, write_fd = os.pipe()
    try:
        fcntl.fcntl(read_fd, fcntl.F_SETOWN, t.parent)
        fcntl.fcntl(read_fd, 10, signal.SIGUSR1)  # F_SETSIG
        fcntl.fcntl(read_fd, fcntl.F_SETFL, os.O_ASYNC)
        os.write(write_fd, b"x")
    finally:
        os.close(read_fd)
        os.close(write_fd)


def _trace(t: Targets) -> None:
    _call("ptrace", 0x4206, t.parent, None, None)  # PTRACE_SEIZE: does not stop it, and ends with this process


def _read_memory(t: Targets) -> None:
    found = ctypes.create_string_buffer(8)
    local = struct.pack("PN", ctypes.addressof(found), 8)
    remote = struct.pack("PN", t.address, 8)
    _call("process_vm_readv", t.parent, local, 1, remote, 1, 0)


def _take_descriptor(t: Targets) -> None:
    pidfd = os.pidfd_open(t.parent)
    try:
        os.close(_call("pidfd_getfd", pidfd, 0, 0))
    finally:
        os.close(pidfd)


def _peer_pidfd(t: Targets) -> None:
    """A handle of the parent, which its socket gives."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=os.dup(t.control_fd)) as control:
        control.getsockopt(socket.SOL_SOCKET, 77, 4)  # SO_PEERPIDFD


def _slow_down(t: Targets) -> None:
    niceness = os.getpriority(os.PRIO_PROCESS, t.parent)
    os.setpriority(os.PRIO_PROCESS, t.parent, min(19, niceness + 1))


def _move(t: Targets) -> None:
    os.sched_setaffinity(t.parent, os.sched_getaffinity(t.parent))


# -- kernel ----------------------------------------------------------------------------------------------------------


def _io_uring(t: Targets) -> None:
    os.close(_call("io_uring_setup", 1, ctypes.create_string_buffer(120)))


def _userfaultfd(t: Targets) -> None:
    os.close(_call("userfaultfd", 1))  # UFFD_USER_MODE_ONLY, which ordinary users may have


def _shared_memory(t: Targets) -> None:
    number = _call("shmget", 0, 4096, 0o600)  # a key that nobody has
    _call("shmctl", number, 0, None)  # gone again


def _int_0x80(t: Targets) -> None:
    """A call of 32-bit x86 (getpid), which has numbers of its own."""
    if not _IS_X86:
        raise OSError(38, "not on this machine")
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20; int 0x80; ret
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    assert ctypes.CFUNCTYPE(ctypes.c_long)(address)() > 0


def _raise_memory_limit(t: Targets) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _unlink(t: Targets) -> None:
    os.unlink(t.file)


TRIES: dict[str, Callable[[Targets], object]] = {
    "open a file": lambda t: _open(t.file),
    "open a file with openat2": _open_with_openat2,
    "open a file for its path alone (O_PATH)": lambda t: _open(t.file, os.O_PATH),
    "make a handle of a file": _name_to_handle,
    "make a file": lambda t: _open(t.new, os.O_CREAT | os.O_WRONLY),
    "read the parent's environment": lambda t: _open(f"/proc/{t.parent}/environ"),
    "open the parent's memory": lambda t: _open(f"/proc/{t.parent}/mem"),
    "list a folder": lambda t: os.listdir(t.folder),
    "stat a path": lambda t: os.stat(t.file),
    "stat a path with statx": _statx,
    "stat a path as if it were a descriptor": _stat_with_an_empty_path_flag,
    "ask for access to a path": _access,
    "read a link": lambda t: os.readlink("/proc/self/exe"),
    "read extended attributes": lambda t: os.listxattr(t.file),
    "change the folder": lambda t: os.chdir(t.folder),
    "watch a folder": _watch,
    "unlink a file": _unlink,
    "rename a file": lambda t: os.rename(t.file, t.new),
    "truncate a file": lambda t: os.truncate(t.file, 0),
    "change a file's mode": lambda t: os.chmod(t.file, 0o600),
    "change a file's times": lambda t: os.utime(t.file),
    "link a file": lambda t: os.link(t.file, t.new),
    "make a symbolic link": lambda t: os.symlink(t.file, t.new),
    "make a folder": lambda t: os.mkdir(t.new),
    "connect over TCP": lambda t: _connect(socket.AF_INET, socket.SOCK_STREAM, 0, ("127.0.0.1", t.tcp)),
    "connect over multipath TCP": lambda t: _connect(socket.AF_INET, socket.SOCK_STREAM, 262, ("127.0.0.1", t.tcp)),
    "listen on a TCP port": _listen,
    "send a UDP datagram": _send_datagram,
    "connect to a socket at a path": lambda t: _connect(socket.AF_UNIX, socket.SOCK_STREAM, 0, t.stream_path),
    "send a datagram to a socket at a path": lambda t: _connect(socket.AF_UNIX, socket.SOCK_DGRAM, 0, t.datagram_path),
    "connect to an abstract socket": lambda t: _connect(socket.AF_UNIX, socket.SOCK_STREAM, 0, f"\0{t.abstract}"),
    "make a pair of sockets": lambda t: [end.close() for end in socket.socketpair()],
    "open a netlink socket": _netlink,
    "send the parent a descriptor": _send_descriptor,
    "list the network's addresses": _list_interfaces,
    "start a process": _fork,
    "start a thread": _start_thread,
    "start a process with clone3": _clone3,
    "run a program": lambda t: os.execv("/bin/true", ["true"]),
    "signal the parent": lambda t: os.kill(t.parent, signal.SIGUSR1),
    "signal the parent's thread": lambda t: _call("tgkill", t.parent, t.parent, signal.SIGUSR1),
    "queue a signal to the parent": _queue_signal,
    "have a descriptor signal the parent": _have_it_signalled,
    "get a handle of the parent": lambda t: os.close(os.pidfd_open(t.parent)),
    "get a handle of the parent from its socket": _peer_pidfd,
    "take a descriptor from the parent": _take_descriptor,
    "trace the parent": _trace,
    "read the parent's memory": _read_memory,
    "compare itself with the parent": lambda t: _call("kcmp", os.getpid(), t.parent, 1, 0, 0),
    "set the parent's limits": lambda t: resource.prlimit(t.parent, resource.RLIMIT_CORE),
    "slow the parent down": _slow_down,
    "move the parent to other CPUs": _move,
    "raise its memory limit": _raise_memory_limit,
    "take more memory than it may": lambda t: bytes(2 * 1024**3),
    "grow the output memory": lambda t: os.ftruncate(t.output_fd, 1 << 30),
    "write to the video": lambda t: os.pwrite(t.input_fd, b"x", 0),
    "become dumpable": lambda t: _call("prctl", 4, 1, 0, 0, 0),
    "become another user": lambda t: os.setuid(os.getuid()),
    "make a user namespace": lambda t: _call("unshare", 0x10000000),
    "open a mount": lambda t: os.close(_call("open_tree", _AT_FDCWD, os.fsencode(t.folder), 0)),
    "use io_uring": _io_uring,
    "use userfaultfd": _userfaultfd,
    "use the kernel's keys": lambda t: _call("keyctl", 0, -3, 0),
    "share memory by number": _shared_memory,
    "change the personality": lambda t: _call("personality", 0xFFFFFFFF),
    "call as a 32-bit program": _int_0x80,
    "call as an x32 program": lambda t: _call("x32"),
    "signal itself": lambda t: os.kill(os.getpid(), 0),
    "ask for the host's name": lambda t: os.uname(),
    "make memory of its own": lambda t: os.close(os.memfd_create("x")),
}
"""Each by what it is in the table of docs/security.md."""
