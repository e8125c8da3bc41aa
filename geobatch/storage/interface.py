"""What storage offers, and how its URLs read."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

from geobatch.errors import FormatError, NotFoundError, UsageError


class Storage(ABC):
    """Objects under one root URL, named by relative keys with `/` between parts."""

    url: str

    @abstractmethod
    def get(self, key: str) -> bytes:
        """The whole object. Raises `NotFoundError`."""

    @abstractmethod
    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`. Raises `NotFoundError`, `FormatError` when the object is shorter."""

    @abstractmethod
    def size(self, key: str) -> int:
        """Size of the object in bytes. Raises `NotFoundError`."""

    @abstractmethod
    def read(self, key: str) -> tuple[bytes, str]:
        """The whole object and the version that `put_if_match` takes: the ETag on S3, SHA-256 on a file system.

        Raises `NotFoundError`.
        """

    @abstractmethod
    def version(self, key: str) -> str:
        """A string that tells without reading that an object changed: the ETag on S3, size and mtime of a file."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Store the object durably, whole or not at all, replacing what was there."""

    @abstractmethod
    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Store the object unless one is there; True when this call, or an identical one, stored it."""

    @abstractmethod
    def put_if_match(self, key: str, data: bytes, version: str) -> str | None:
        """Replace the object only while its version is still `version`; the new version, or None when it is not.

        None too when the object is gone. A writer whose answer was lost reads back what is there, and its own bytes
        count as success: writers that race must therefore write different bytes, their name or number for one.
        """

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Key and size of every object under `prefix`, sorted by key."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object if it exists."""

    @abstractmethod
    def sweep(self) -> None:
        """Remove what writers that were killed left half-written, as far as that can be done."""

    @abstractmethod
    @contextlib.contextmanager
    def open_writer(self, key: str) -> Iterator[Callable[[bytes], None]]:
        """A context that takes bytes in order and publishes the object only when the context ends without error."""

    def exists(self, key: str) -> bool:
        """True when the object exists."""
        try:
            self.size(key)
        except NotFoundError:
            return False
        return True


def split_url(url: str) -> tuple[str, str]:
    """The root URL and the last part of the key: `s3://b/raw/f3.sgy` becomes `("s3://b/raw", "f3.sgy")`."""
    root, _, name = url.rstrip("/").rpartition("/")
    if url.startswith("s3://") and root in ("s3:/", "s3:"):
        raise UsageError("URL names a bucket but no object in it", where=url, limit="s3://bucket/key")
    return (root or ("/" if url.startswith("/") else "."), name)


def join_url(url: str, *keys: str) -> str:
    """`url` with the keys appended."""
    return "/".join([url.rstrip("/"), *(key.strip("/") for key in keys)])


def absolute_url(url: str) -> str:
    """The URL with a plain or relative path made absolute, so that other processes open the same place."""
    if s3_place(url)[0]:
        return url.rstrip("/")
    return str(path_of(url).absolute())


def path_of(url: str) -> Path:
    """The path that a `file://` URL or a plain path names."""
    return Path(url.removeprefix("file://"))


def s3_place(url: str) -> tuple[str, str]:
    """Bucket and prefix of an `s3://` URL, empty for others. `?` and `#` are parts of a key like any character."""
    if not url.startswith("s3://"):
        return "", ""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    return bucket, prefix.strip("/")


def exact(data: bytes, length: int, where: str, start: int) -> bytes:
    """`data`, refused when it is not `length` bytes."""
    if len(data) != length:
        raise FormatError("ends too early", where=where, measured=f"{len(data)} bytes from {start}", limit=length)
    return data
