"""Storage on a file system, local or shared."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from geobatch.errors import NotFoundError, StorageError, TransientError, UsageError
from geobatch.storage.interface import Storage, exact, join_url

PARTIAL = ".partial"
LOCK = ".lock"
LOCK_TIMEOUT_S = 60.0
LOCK_POLL_S = 0.02
ABANDONED_S = 600.0
"""Longer than any living writer leaves its temporary file alone: what it waits for is given up after half of that."""
PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
"""What a network file system answers while its server does not, or has just been restarted."""


class FileStorage(Storage):
    """Objects as files under a folder. New files appear whole: temporary file, fsync, rename or exclusive link."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    def get(self, key: str) -> bytes:
        """The whole file."""
        with self._reading(key):
            return self._path(key).read_bytes()

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`."""
        with self._reading(key), self._path(key).open("rb") as file:
            file.seek(start)
            return exact(file.read(length), length, join_url(self.url, key), start)

    def size(self, key: str) -> int:
        """Size of the file in bytes."""
        with self._reading(key):
            return self._path(key).stat().st_size

    def read(self, key: str) -> tuple[bytes, str]:
        """The whole file and its SHA-256: times are too coarse, and shared file systems cache them."""
        data = self.get(key)
        return data, hashlib.sha256(data).hexdigest()

    def version(self, key: str) -> str:
        """Size and modification time."""
        with self._reading(key):
            stat = self._path(key).stat()
        return f"{stat.st_size}-{stat.st_mtime_ns}"

    def put(self, key: str, data: bytes) -> None:
        """Replace the file by rename."""
        with self.open_writer(key) as write:
            write(data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Publish by an exclusive hard link, which fails when the name exists."""
        path = self._path(key)
        with self._writing(key):
            temporary = self._temporary(path)
            try:
                _write_durably(temporary, data)
                os.link(temporary, path)
                _sync_folder(path.parent)
            except FileExistsError:
                return path.read_bytes() == data
            finally:
                temporary.unlink(missing_ok=True)
        return True

    def put_if_match(self, key: str, data: bytes, version: str) -> str | None:
        """Compare and rename under an exclusive lock of the folder, which every other `put_if_match` waits for."""
        path = self._path(key)
        if not path.parent.is_dir():
            return None
        ours = hashlib.sha256(data).hexdigest()
        with self._locked(path.parent / LOCK, key):
            try:
                _, found = self.read(key)
            except NotFoundError:
                return None
            if found == version != ours:
                self.put(key, data)
            return ours if found in (version, ours) else None

    @contextlib.contextmanager
    def open_writer(self, key: str) -> Iterator[Callable[[bytes], None]]:
        """Bytes go to a temporary file that takes the final name at the end."""
        path = self._path(key)
        with self._writing(key):
            temporary = self._temporary(path)
        try:
            with temporary.open("wb") as file:

                def write(data: bytes) -> None:
                    with self._writing(key):
                        file.write(data)

                yield write
                with self._writing(key):
                    file.flush()
                    os.fsync(file.fileno())
            with self._writing(key):
                temporary.replace(path)
                _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Files under `prefix`, temporary ones and locks left out."""
        if not self.root.is_dir():
            return
        start = self._path(prefix) if prefix else self.root
        files = [start] if start.is_file() else sorted(start.rglob("*"))
        for path in files:
            if path.is_file() and not path.name.endswith(PARTIAL) and path.name != LOCK:
                yield path.relative_to(self.root).as_posix(), path.stat().st_size

    def delete(self, key: str) -> None:
        """Remove the file."""
        with self._writing(key):
            self._path(key).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove temporary files that nobody wrote to for `ABANDONED_S`, by the clock of the file system."""
        with contextlib.suppress(OSError):
            probe = self._temporary(self.root / "now")
            probe.touch()
            now = probe.stat().st_mtime
            probe.unlink()
            for path in self.root.rglob(f".*{PARTIAL}"):
                if now - path.stat().st_mtime > ABANDONED_S:
                    path.unlink()

    def _path(self, key: str) -> Path:
        if PurePosixPath(key).is_absolute() or ".." in PurePosixPath(key).parts:
            raise UsageError("key leaves its root", where=self.url, measured=key)
        return self.root / key

    def _temporary(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")

    @contextlib.contextmanager
    def _locked(self, lock: Path, key: str) -> Iterator[None]:
        with self._writing(key):
            file = lock.open("ab")
        # The kernel lets go of the lock when the file is closed, or this process dies.
        with file:
            with self._writing(key):
                taken = _take_lock(file.fileno())
            if not taken:
                raise TransientError(
                    "another process does not let go of a lock",
                    where=str(lock),
                    limit=f"free within {LOCK_TIMEOUT_S:g} s",
                    remedy="A process that was stopped or hangs holds it: let it go on, or end it.",
                )
            yield

    @contextlib.contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFoundError("no such file", where=join_url(self.url, key), remedy="Check the path.") from None
        except PermissionError:
            raise StorageError("file cannot be read: permission denied", where=join_url(self.url, key)) from None
        except OSError as error:
            raise _failed("read", error, join_url(self.url, key)) from error

    @contextlib.contextmanager
    def _writing(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileExistsError as error:
            raise StorageError(f"cannot write: {error.strerror}", where=str(error.filename)) from None
        except OSError as error:
            raise _failed("write", error, join_url(self.url, key)) from error


def _failed(what: str, error: OSError, where: str) -> StorageError | TransientError:
    """What a file system says, as the error that tells whether another try may do better."""
    text = f"cannot {what}: {error.strerror or error}"
    if error.errno in PASSING:
        return TransientError(text, where=where, remedy="Check the file system, then run the same command again.")
    remedy = "Check that the folder exists, is writable and has space, or give another output."
    return StorageError(text, where=where, remedy=remedy if what == "write" else "Check the path.")


def _take_lock(descriptor: int) -> bool:
    """Take an exclusive lock; False when another process holds it all the time, which one that is stopped does."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(LOCK_POLL_S)


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
