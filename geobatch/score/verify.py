"""`verify`: every shard of an output read again and compared with its receipt, and what differs named."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from geobatch.errors import IntegrityError, NotFoundError
from geobatch.fanout import open_fanout
from geobatch.score.lease import Control
from geobatch.score.planning import stored_plan
from geobatch.score.receipts import Ledger, block_numbers
from geobatch.score.spec import ScorePlan
from geobatch.score.worker import block_of_object, shard_object
from geobatch.shards import array_metadata, decode_shard
from geobatch.storage import open_storage

READERS = 8
SHARDS_PER_ITEM = 64
SMALL_BYTES = 2**30

Entry = tuple[int, str, int, bytes]


@dataclass(frozen=True)
class Finding:
    """One object that is not what it should be.

    Attributes:
        block: The block's number, -1 for metadata of an array.
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
    """Shards and bytes that have receipts, and what is not as they say."""

    shards: int
    bytes: int
    findings: tuple[Finding, ...]


def verify(output_url: str, *, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Verification:
    """Read every object of a scored survey and compare size and SHA-256 with its receipt.

    Shards without a receipt, left by a run that was stopped, must decode with all their checksums.

    Raises:
        NotFoundError: no scoring run is there.
        IntegrityError: its plan or its receipts do not read.
    """
    plan, control = stored_plan(output_url), Control(output_url)
    return verify_receipts(control, plan, Ledger(control, plan).load(), on_progress)


def require_sound(result: Verification, output_url: str) -> None:
    """Refuse an output of which something is missing or damaged.

    Raises:
        IntegrityError: with the first finding.
    """
    if result.findings:
        first = result.findings[0]
        raise IntegrityError(
            f"{len(result.findings)} objects are missing or damaged",
            where=output_url,
            measured=f"{first.key} {first.what} ({first.measured})",
            remedy="geobatch repair of this output writes those again.",
        )


def verify_receipts(
    control: Control,
    plan: ScorePlan,
    receipts: pa.Table,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Verification:
    """Compare what is stored with these receipts, on the Ray cluster when the output is large."""
    findings = [*_metadata_findings(control, plan), *_unreceipted(control, plan, receipts)]
    entries = list(_entries(plan, receipts))
    items = [entries[i : i + SHARDS_PER_ITEM] for i in range(0, len(entries), SHARDS_PER_ITEM)]
    total = sum(size for _, _, size, _ in entries)
    largest = max((size for _, _, size, _ in entries), default=0)
    done = 0
    with open_fanout(small=total < SMALL_BYTES) as fanout:
        check = partial(_check, control.url)
        for position, found in fanout(check, items, READERS * largest * 2 + 2**28):
            findings += found
            done += len(items[position])
            on_progress(done, len(entries))
    return Verification(len(entries), total, tuple(sorted(findings, key=lambda f: (f.block, f.array))))


def _entries(plan: ScorePlan, receipts: pa.Table) -> Iterator[Entry]:
    """Block, object, size and hash of every shard that has a receipt."""
    for spec in plan.arrays():
        sizes = receipts[f"{spec.name}.size"].to_pylist()
        hashes = receipts[f"{spec.name}.sha256"].to_pylist()
        for block, size, sha256 in zip(block_numbers(receipts).tolist(), sizes, hashes, strict=True):
            yield block, shard_object(spec, plan.grid.index(block)), size, sha256


def _check(url: str, entries: Sequence[Entry]) -> list[Finding]:
    """The findings among a few shards, several read at a time."""
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


def _unreceipted(control: Control, plan: ScorePlan, receipts: pa.Table) -> Iterator[Finding]:
    """Stored shards of blocks without a receipt that do not decode."""
    known = np.zeros(plan.grid.total, bool)
    known[block_numbers(receipts)] = True
    for spec in plan.arrays():
        for key, _ in control.storage.list(f"{spec.name}/c"):
            block = block_of_object(plan.grid, key)
            if block is None or known[block]:
                continue
            try:
                decode_shard(spec, control.storage.get(key))
            except (ValueError, IntegrityError) as error:
                yield Finding(block, spec.name, key, "unreadable", str(error).splitlines()[0])


def _metadata_findings(control: Control, plan: ScorePlan) -> Iterator[Finding]:
    for spec in plan.arrays():
        key = f"{spec.name}/zarr.json"
        try:
            stored = control.get_json(key)
        except IntegrityError as error:
            yield Finding(-1, spec.name, key, "damaged", error.measured)
        else:
            if stored != array_metadata(spec):
                what = "missing" if stored is None else "damaged"
                yield Finding(-1, spec.name, key, what, "not the array of the plan")
