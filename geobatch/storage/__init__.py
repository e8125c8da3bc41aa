"""URLs to storage: one small interface over S3 and file systems.

`boto3` is the control plane (whole objects, ranges, conditional writes); `obstore` carries chunk traffic behind Zarr.
Both are imported when first used: every worker begins here, and together they take a quarter of a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from geobatch.errors import UsageError
from geobatch.storage.files import FileStorage
from geobatch.storage.interface import Storage, absolute_url, join_url, path_of, s3_place, split_url

if TYPE_CHECKING:
    from geobatch.storage.chunks import VerifiedStore

__all__ = [
    "Storage",
    "absolute_url",
    "arrow_filesystem",
    "join_url",
    "open_storage",
    "split_url",
    "zarr_store",
]


def open_storage(url: str, *, patience_s: float | None = None) -> Storage:
    """The storage rooted at `url`: `s3://bucket/prefix`, `file:///path` or a plain path.

    Args:
        url: The root.
        patience_s: How long each call is tried while storage does not answer; some minutes when not given.

    Raises:
        UsageError: the scheme is not on the allow-list.
    """
    bucket, prefix = s3_place(url)
    if bucket:
        from geobatch.storage.s3 import S3Storage

        return S3Storage(bucket, prefix, patience_s)
    if url.startswith("file:///") or (url and "://" not in url):
        return FileStorage(path_of(url))
    raise UsageError(
        "URL cannot be opened", where=url or "(empty URL)", limit="s3://bucket/key, file:///path or a plain path"
    )


def zarr_store(url: str, *, complete: bool = False) -> VerifiedStore:
    """A Zarr store over `url` to read chunks from.

    Args:
        url: The root.
        complete: Every chunk was stored, so that a missing one is an `IntegrityError` and not fill value.
    """
    from geobatch.storage.chunks import chunk_store

    return chunk_store(open_storage(url), complete=complete)


def arrow_filesystem(url: str) -> tuple[Any, str]:
    """A pyarrow file system and the path in it, for Ray Train's checkpoints."""
    bucket, prefix = s3_place(url)
    if bucket:
        from geobatch.storage.s3 import arrow_s3

        return arrow_s3(), f"{bucket}/{prefix}"
    import pyarrow.fs

    path = path_of(url).absolute()
    path.mkdir(parents=True, exist_ok=True)
    return pyarrow.fs.LocalFileSystem(), str(path)
