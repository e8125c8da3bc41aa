"""What proves stored objects: receipts as Parquet, and objects read again and compared with them."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.parquet

from geobatch.errors import IntegrityError, NotFoundError
from geobatch.fanout import open_fanout
from geobatch.storage import open_storage

READERS = 8
OBJECTS_PER_ITEM = 64
SMALL_BYTES = 2**30

Entry = tuple[int, str, int, bytes]
"""Number of the block or piece, object, size in bytes and SHA-256."""


@dataclass(frozen=True)
class Finding:
    """One object that is not what it should be.

    Attributes:
        block: The number of its block or piece, -1 for metadata of an array.
        array: The array it belongs to.
        key: The object.
        what: `missing`, `damaged` (its bytes are not those of the receipt), or `unreadable` (there is no receipt, and
            it does not decode).
        measured: What was found.
    """

    block: int
    array: str
    key: str
    what: str
    measured: str


@dataclass(frozen=True)
class Verification:
    """Objects and bytes that have receipts, and what is not as they say."""

    shards: int
    bytes: int
    findings: tuple[Finding, ...]


def batch_name(fence: int, sequence: int) -> str:
    """The name of a batch of receipts, which nobody else uses and which sorts by the fencing number."""
    return f"{fence:08d}-{sequence:06d}-{uuid.uuid4().hex[:8]}.parquet"


def parquet_bytes(table: pa.Table, dictionary: Sequence[str] | None = None) -> bytes:
    """The table as a Parquet file, these columns or all of them as dictionaries where that is smaller."""
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(
        table, sink, compression="zstd", use_dictionary=True if dictionary is None else list(dictionary)
    )
    body: bytes = sink.getvalue().to_pybytes()
    return body


def read_receipts(body: bytes, where: str) -> pa.Table:
    """The receipts in one stored object.

    Raises:
        IntegrityError: it is no Parquet file of receipts.
    """
    try:
        return pyarrow.parquet.read_table(pa.BufferReader(body))
    except (pa.ArrowException, OSError) as error:
        raise IntegrityError("receipts do not read", where=where, measured=str(error).splitlines()[0]) from error


def require_sound(result: Verification, url: str, remedy: str = "") -> None:
    """Refuse an output of which something is missing or damaged.

    Args:
        result: What was found.
        url: The output.
        remedy: What the user can do; by default `geobatch repair`.

    Raises:
        IntegrityError: with the first finding.
    """
    if result.findings:
        first = result.findings[0]
        raise IntegrityError(
            f"{len(result.findings)} objects are missing or damaged",
            where=url,
            measured=f"{first.key} {first.what} ({first.measured})",
            remedy=remedy or "geobatch repair of this output writes those again.",
        )


def check_objects(
    url: str, entries: Sequence[Entry], on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Verification:
    """Read every object and compare it with its entry, on the Ray cluster when they are large."""
    items = [entries[i : i + OBJECTS_PER_ITEM] for i in range(0, len(entries), OBJECTS_PER_ITEM)]
    total = sum(size for _, _, size, _ in entries)
    largest = max((size for _, _, size, _ in entries), default=0)
    findings: list[Finding] = []
    done = 0
    with open_fanout(small=total < SMALL_BYTES) as fanout:
        for position, found in fanout(partial(_check, url), items, READERS * largest * 2 + 2**28):
            findings += found
            done += len(items[position])
            on_progress(done, len(entries))
    return Verification(len(entries), total, tuple(findings))


def _check(url: str, entries: Sequence[Entry]) -> list[Finding]:
    """The findings among a few objects, several read at a time."""
    with ThreadPoolExecutor(READERS) as readers:
        return [found for found in readers.map(partial(_check_one, url), entries) if found]


def _check_one(url: str, entry: Entry) -> Finding | None:
    block, key, size, sha256 = entry
    array = key.partition("/")[0]
    try:
        stored = open_storage(url).get(key)
    except NotFoundError:
        return Finding(block, array, key, "missing", "no object")
    except IntegrityError as error:
        return Finding(block, array, key, "damaged", error.measured)
    if len(stored) != size:
        return Finding(block, array, key, "damaged", f"{len(stored)} bytes, receipt {size}")
    if hashlib.sha256(stored).digest() != sha256:
        return Finding(block, array, key, "damaged", "SHA-256 differs from the receipt")
    return None
