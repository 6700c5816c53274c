"""Create-once writes: an output folder on any file system, where one writer creates an object, whole, once.

The exactly-once of a run rests on what ``Store.create`` promises: it never replaces an object, never leaves a piece of
one behind, and lets exactly one of many writers of a path succeed.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import errno
import json
import os
import posixpath
import threading
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

from vidray.errors import RunError, UsageError
from vidray.storage.failures import Failure, classify, describe, http_status, is_outage
from vidray.storage.location import Location, locate, split_bucket
from vidray.storage.redaction import redact
from vidray.storage.retry import Deadline, raise_run_error, with_retries

T = TypeVar("T")

_WRITABLE = ("local", "s3", "gcs", "azure", "memory")
_TEMPORARY = ".vidray-tmp-"
"""How the names of unfinished local files start, which ``list`` does not show."""
_memory_lock = threading.Lock()


class Store:
    """An output folder. Paths are relative to it, with ``/`` between parts; missing folders are made.

    A store that is away is waited for until the process's deadline (`retry.configure`), or the store's own. What fails
    then, or for another reason than those that a method names, is a RunError on one line.
    """

    def __init__(self, uri: str, *, conditional: bool = True) -> None:
        """
        Args:
            uri: the folder, on a local disk, S3, GCS, Azure or in memory.
            conditional: False for a store that ignores or refuses conditional writes: ``create`` then checks
                before it writes, and two writers at the same moment can both succeed.

        Raises:
            UsageError: the protocol is unknown, not installed, or cannot be an output.
        """
        self._place = locate(uri)
        self._conditional = conditional
        self._deadline_seconds: float | None = None
        if self._place.kind not in _WRITABLE:
            raise UsageError(f"{redact(uri)} cannot be an output: allowed are local paths, s3, gs, az, abfs and memory")

    @property
    def uri(self) -> str:
        """The folder's URI; a plain absolute path for a local one."""
        return self._place.uri

    def uri_for(self, path: str) -> str:
        """The URI of an object in this folder."""
        return self._place.uri_of(self._full(path))

    def with_deadline(self, seconds: float) -> Store:
        """The same folder, waited for no longer than this when the store is away."""
        other = copy.copy(self)
        other._deadline_seconds = seconds
        return other

    def create(self, path: str, data: bytes) -> None:
        """Writes a new object, whole or not at all.

        Raises:
            FileExistsError: there is one already. It may be this very one, if the store's reply to a successful write
                was lost on its way: read it back to find out.
            RunError: the store failed.
        """
        try:
            self._try_create(path, data)
        except (FileExistsError, RunError):
            raise
        except Exception as error:
            raise_run_error(error, f"cannot write {self.uri_for(path)}")

    def overwrite(self, path: str, data: bytes) -> None:
        """Writes an object that is only there to be looked at, whatever was there before; raises RunError as `create`.

        A trainer that was paused and has lost its lease may put its own between the two calls, once.
        """
        for _ in range(2):
            self.delete(path)
            with contextlib.suppress(FileExistsError):
                self.create(path, data)
                return
        self.delete(path)
        self.create(path, data)

    def replace(self, path: str, data: bytes) -> None:
        """Writes an object in the place of one that is there: at any moment a reader finds the one or the other, whole.

        Raises RunError if the store failed. For who holds the lease: nothing keeps a second writer away.
        """
        unconditional = copy.copy(self)
        unconditional._conditional = False
        try:
            full, uri = self._full(path), self.uri_for(path)
            with_retries(lambda: unconditional._create(full, data), what=uri, deadline=self._deadline())
        except Exception as error:
            raise_run_error(error, f"cannot replace {self.uri_for(path)}")

    def read(self, path: str) -> bytes:
        """The whole object.

        Raises:
            FileNotFoundError: there is none.
            RunError: the store failed.
        """
        return self._wait_for(lambda: self._read(self._full(path)), "read", self.uri_for(path))

    def read_json(self, path: str) -> dict[str, Any]:
        """An object that was written as a JSON object; raises as ``read``, RunError also if it is damaged."""
        try:
            values = json.loads(self.read(path))
        except ValueError as error:
            raise RunError(f"{self.uri_for(path)} cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise RunError(f"{self.uri_for(path)} cannot be read: it holds no JSON object")
        return values

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """The bytes from ``start`` to before ``stop``, fewer at the object's end; raises as ``read``."""
        return self._wait_for(lambda: self._read_range(self._full(path), start, stop), "read", self.uri_for(path))

    def exists(self, path: str) -> bool:
        """True if there is an object (not a folder) of this name now."""
        full = self._full(path)
        if self._place.kind == "local":
            return os.path.isfile(full)
        try:
            return self._wait_for(lambda: self._info(full), "look up", self.uri_for(path))["type"] == "file"
        except FileNotFoundError:
            return False

    def list(self, prefix: str = "") -> list[str]:
        """Paths of all objects below a folder, at any depth, sorted; [] if there is no such folder."""
        return sorted(self._list(prefix))

    def list_sizes(self, prefix: str = "") -> dict[str, int]:
        """The same, and how many bytes each has."""
        sizes = self._list(prefix)
        if self._place.kind == "local":
            found = {path: _local_size(self._full(path)) for path in sizes}
            sizes = {path: size for path, size in found.items() if size is not None}
        return {path: sizes[path] for path in sorted(sizes)}

    def _list(self, prefix: str) -> dict[str, int]:
        place = self._place
        folder = self._full(prefix) if prefix.strip("/") else place.path
        found = self._wait_for(lambda: _list_files(place, folder), "list", place.uri_of(folder))
        start = len(place.path.rstrip("/")) + 1
        return {name[start:]: size for name, size in found.items()}

    def delete(self, path: str) -> None:
        """Removes an object, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._wait_for(lambda: self._delete(self._full(path)), "delete", self.uri_for(path))

    def probe(self) -> None:
        """Makes sure that objects can be created here, and that a second writer of the same path is refused.

        Raises:
            UsageError: one of the two is not so; the message says which.
            RunError: the store is away until the deadline.
        """
        path, data = f".vidray-probe-{uuid.uuid4().hex}", b"written by vidray to try conditional writes"
        try:
            self._probe_once(path, data)
            if self._conditional and not self._refuses_second_write(path, data):
                raise UsageError(
                    f"{self.uri} ignores conditional writes: a second write of the same object succeeded, so two runs "
                    "could replace each other's parts. --allow-unconditional-store would rely on the lease alone"
                )
        finally:
            with contextlib.suppress(Exception):
                self.delete(path)

    def _probe_once(self, path: str, data: bytes) -> None:
        try:
            with contextlib.suppress(FileExistsError):  # a lost reply: the name is unique, so the object is ours
                self._try_create(path, data)
        except Exception as error:
            if is_outage(error):
                raise_run_error(error, f"cannot write to {self.uri}")
            hint = ""
            if http_status(error) == 501 or getattr(error, "errno", None) in _NO_LINKS:
                hint = ". It refuses conditional writes; --allow-unconditional-store would rely on the lease alone"
            raise UsageError(f"cannot write to {self.uri}: {describe(error)}{hint}") from error

    def _refuses_second_write(self, path: str, data: bytes) -> bool:
        try:
            self.create(path, data)
        except FileExistsError:
            return True
        return False

    def _wait_for(self, call: Callable[[], T], verb: str, uri: str) -> T:
        """What ``call`` returns. Errors of the store become RunErrors here, but for "not found"."""
        try:
            return with_retries(call, what=uri, deadline=self._deadline())
        except Exception as error:
            if classify(error) is Failure.NOT_FOUND:
                raise FileNotFoundError(uri) from error
            raise_run_error(error, f"cannot {verb} {uri}")

    def _deadline(self) -> Deadline | None:
        return None if self._deadline_seconds is None else Deadline(self._deadline_seconds)

    def _try_create(self, path: str, data: bytes) -> None:
        full, uri = self._full(path), self.uri_for(path)
        if not self._conditional and self.exists(path):
            raise FileExistsError(uri)
        try:
            with_retries(
                lambda: self._create(full, data), what=uri, deadline=self._deadline(), should_retry=_should_put_again
            )
        except Exception as error:
            if isinstance(error, FileExistsError) or (self._conditional and http_status(error) == 412):
                raise FileExistsError(uri) from error
            raise

    def _full(self, path: str) -> str:
        parts = path.split("/")
        if not path or any(part in ("", ".", "..") for part in parts):
            raise ValueError(f"a path in a store is relative, without empty parts, '.' and '..', got {path!r}")
        return self._place.join(path)

    def _create(self, full: str, data: bytes) -> None:
        fs = self._place.fs
        match self._place.kind:
            case "local":
                create_local(full, data, conditional=self._conditional)
            case "s3":
                # One PUT whatever the size: S3 checks the condition of a multipart upload only when it is completed,
                # and not every store does so then.
                bucket, key = split_bucket(full)
                condition = {"IfNoneMatch": "*"} if self._conditional else {}
                fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)
            case "gcs":
                fs.pipe_file(full, data, mode="create" if self._conditional else "overwrite")
            case "azure":
                fs.pipe_file(full, data, overwrite=not self._conditional)
            case _:
                with _memory_lock:
                    if self._conditional and fs.exists(full):
                        raise FileExistsError(full)
                    fs.pipe_file(full, data)

    def _read(self, full: str) -> bytes:
        if self._place.kind == "local":
            with open(full, "rb") as file:
                return file.read()
        return self._place.fs.cat_file(full)

    def _read_range(self, full: str, start: int, stop: int) -> bytes:
        if self._place.kind == "local":
            with open(full, "rb") as file:
                file.seek(start)
                return file.read(stop - start)
        return self._place.fs.cat_file(full, start=start, end=stop)

    def _info(self, full: str) -> dict[str, Any]:
        return self._place.fs.info(full)

    def _delete(self, full: str) -> None:
        if self._place.kind == "local":
            os.unlink(full)
        elif self._place.kind == "s3":
            bucket, key = split_bucket(full)
            self._place.fs.call_s3("delete_object", Bucket=bucket, Key=key)
        else:
            self._place.fs.rm_file(full)


def file_place(place: str) -> tuple[Store, str]:
    """The folder of a file that a user names, and the file's name in it; no name if it is a folder's."""
    folder, name = posixpath.split(place)
    return Store(folder or ".", conditional=False), name


def create_file(place: str, data: bytes) -> None:
    """Writes a new file that a user names.

    Raises:
        UsageError: nothing can be written there.
        RunError: there is one already, or the store failed.
    """
    store, name = file_place(place)
    try:
        store.create(name, data)
    except FileExistsError:
        raise RunError(f"{place} is there already, and is not overwritten") from None


def _should_put_again(error: BaseException) -> bool:
    """S3 answers 409 while another conditional write of the same key is under way: ask again who won."""
    return not isinstance(error, FileExistsError) and (http_status(error) == 409 or is_outage(error))


def _list_files(place: Location, folder: str) -> dict[str, int]:
    """Full paths, and the sizes that a listing tells; 0 for local files."""
    if place.kind == "local":
        return {
            os.path.join(path, name): 0
            for path, _, names in os.walk(folder, onerror=_raise_unless_missing)
            for name in names
            if not name.startswith(_TEMPORARY)
        }
    place.fs.invalidate_cache()
    try:
        found = place.fs.find(folder, withdirs=False, detail=True)
    except FileNotFoundError:
        return {}
    # fsspec's find also returns an object that has the folder's own name.
    return {name: info.get("size") or 0 for name, info in found.items() if name.startswith(folder.rstrip("/") + "/")}


def _local_size(path: str) -> int | None:
    """None: it has just been deleted."""
    with contextlib.suppress(FileNotFoundError):
        return os.stat(path).st_size
    return None


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL})
"""Error numbers of file systems without hard links: FAT, some FUSE and network mounts."""
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1


def create_local(path: str, data: bytes, *, conditional: bool = True) -> None:
    """Creates a local file, whole and on disk, or not at all, whenever the process or the machine dies.

    A rename would silently replace what is there. So the finished temporary file gets its name by a hard link, which
    fails if the name is taken.

    Raises:
        FileExistsError: the name is taken.
    """
    folder = os.path.dirname(path)
    if conditional and os.path.lexists(path):
        raise FileExistsError(path)
    _make_folder(folder)
    temporary = os.path.join(folder, _TEMPORARY + uuid.uuid4().hex)
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if conditional:
            _name_exclusively(temporary, path)
        else:
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    _sync_folder(folder)


def _name_exclusively(temporary: str, path: str) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        # On NFS the reply to a successful link can be lost, and the next attempt then finds our own file.
        if not os.path.samefile(temporary, path):
            raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        rename_exclusively(temporary, path)


def rename_exclusively(source: str, target: str) -> None:
    """Renames a file on Linux unless the new name is taken, for file systems without hard links.

    Raises:
        FileExistsError: it is taken.
        OSError: the file system cannot do this either.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(source), os.fsencode(target)
    if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_NOREPLACE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def _make_folder(folder: str) -> None:
    """Makes a folder and those above it, each on disk before the next."""
    if os.path.isdir(folder):
        return
    _make_folder(os.path.dirname(folder))
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder)
    _sync_folder(os.path.dirname(folder))


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_LINKS:  # some network mounts cannot sync a folder, and need not
            raise
    finally:
        os.close(descriptor)
