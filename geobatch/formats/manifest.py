"""What proves an ingested survey: receipts of pieces, one manifest of every object, a checksum of the manifest.

While an ingest runs, receipts of its pieces come in batches. In the end `manifest.parquet` holds them all, and under
the number `WHOLE` what no piece wrote: metadata, small arrays, quality table, the group itself. `manifest.sha256`
proves the manifest, in the form that `sha256sum --check` reads. No object carries a fencing number or a time: the bytes
of a survey do not tell how often its ingest was killed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import pyarrow as pa

from geobatch.errors import IntegrityError
from geobatch.lease import Control
from geobatch.proof import read_receipts
from geobatch.storage import open_storage

DECISIVE = "_geobatch/ingest.json"
BATCHES = "_geobatch/receipts"
MANIFEST = "_geobatch/manifest.parquet"
MANIFEST_SUM = "_geobatch/manifest.sha256"
QUALITY = "_geobatch/quality.parquet"
WHOLE = -1

_OBJECT = pa.struct([("key", pa.string()), ("size", pa.int64()), ("sha256", pa.binary(32))])
_FAULT = pa.struct([(name, pa.string()) for name in ("what", "where", "fault", "action")])
_RECEIPTS = pa.schema(
    [
        ("piece", pa.int64()),
        ("fence", pa.int64()),
        ("objects", pa.list_(_OBJECT)),
        ("faults", pa.list_(_FAULT)),
        ("figures", pa.string()),
    ]
)


@dataclass(frozen=True)
class Fault:
    """A bad trace, record, tile or row, and what became of it: one row of the survey's quality table.

    Attributes:
        what: What it is, such as `trace`.
        where: Which one, such as `f3.sgy trace 1204 (inline 111, crossline 890)`.
        fault: What ails it, such as `same inline and crossline as trace 1203`.
        action: What was done, such as `left out`.
    """

    what: str
    where: str
    fault: str
    action: str


@dataclass(frozen=True)
class Stored:
    """An object that was stored: its key, its size in bytes and the SHA-256 of its bytes."""

    key: str
    size: int
    sha256: bytes

    @classmethod
    def of(cls, key: str, body: bytes) -> Self:
        """What proves these bytes."""
        return cls(key, len(body), hashlib.sha256(body).digest())


@dataclass(frozen=True)
class Written:
    """What a piece did.

    Attributes:
        objects: What it stored, durably.
        faults: What it found wrong with its input.
        figures: Anything else, as JSON; comes back with the receipt when a later run resumes.
    """

    objects: tuple[Stored, ...]
    faults: tuple[Fault, ...] = ()
    figures: dict[str, Any] = field(default_factory=dict)


def receipt_table(written: Mapping[int, Written], fence: int = 0) -> pa.Table:
    """A row per piece, in the order of their numbers."""
    rows = [
        {
            "piece": number,
            "fence": fence,
            "objects": [vars(stored) for stored in written[number].objects],
            "faults": [vars(fault) for fault in written[number].faults],
            "figures": json.dumps(written[number].figures),
        }
        for number in sorted(written)
    ]
    return pa.Table.from_pylist(rows, schema=_RECEIPTS)


def read_table(control: Control, key: str) -> pa.Table:
    """The receipts in an object; none when there is no such object.

    Raises:
        IntegrityError: it does not read.
    """
    body = control.get(key)
    return _RECEIPTS.empty_table() if body is None else parse_table(body, f"{control.url}/{key}")


def parse_table(body: bytes, where: str) -> pa.Table:
    """The receipts in these bytes; raises as `read_table`."""
    try:
        return read_receipts(body, where).cast(_RECEIPTS)
    except (pa.ArrowException, ValueError) as error:
        raise IntegrityError("receipts do not read", where=where, measured=str(error).splitlines()[0]) from error


def written_by_piece(table: pa.Table) -> dict[int, Written]:
    """What each piece wrote."""
    return {
        row["piece"]: Written(
            tuple(Stored(**stored) for stored in row["objects"]),
            tuple(Fault(**fault) for fault in row["faults"]),
            json.loads(row["figures"]),
        )
        for row in table.to_pylist()
    }


def manifest_sum(manifest: bytes) -> bytes:
    """What `sha256sum manifest.parquet` would print."""
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST.rpartition('/')[2]}\n".encode()


def fault_table(faults: Sequence[Fault]) -> pa.Table:
    """A row per fault."""
    return pa.Table.from_pylist([vars(fault) for fault in faults], schema=pa.schema(list(_FAULT)))


def read_quality(url: str) -> list[Fault]:
    """The quality table of an ingested survey: what was wrong with its sources, and what became of it.

    Raises:
        NotFoundError: no ingest finished there.
    """
    table = read_receipts(open_storage(url).get(QUALITY), f"{url}/{QUALITY}")
    return [Fault(**row) for row in table.to_pylist()]


def is_ingested(url: str) -> bool:
    """True when an ingest that keeps receipts wrote the survey there, or began it."""
    storage = open_storage(url)
    return storage.exists(DECISIVE) or storage.exists(MANIFEST_SUM)


def tidy(control: Control) -> None:
    """Remove what is of use only while an ingest runs: batches of receipts, scans, half-written files."""
    for key, _ in list(control.storage.list("_geobatch/")):
        if key.count("/") > 1:
            control.delete(key)
    control.storage.sweep()
