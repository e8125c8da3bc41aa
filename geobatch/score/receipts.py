"""Receipts: which blocks are written, proven by the checksum of every shard, kept as Parquet objects beside the output.

A receipt is about 150 bytes in memory and half of that stored, so that a million blocks are one object of some 70 MB.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from geobatch.errors import IntegrityError, TransientError
from geobatch.lease import Control
from geobatch.proof import batch_name, parquet_bytes, read_receipts
from geobatch.score.spec import ScorePlan
from geobatch.shards import ArraySpec

FLUSH_INTERVAL_S = 5.0
FLUSH_COUNT = 20_000
MANIFEST = "_geobatch/manifest.parquet"
BATCHES = "_geobatch/receipts"
DEAD_LETTERS = "_geobatch/dead_letters.json"
STAGES = ("read", "preprocess", "predict", "write")
SHA256_BYTES = 32

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ShardReceipt:
    """One stored object: its size in bytes and the SHA-256 of its bytes."""

    size: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof that a block was written.

    Attributes:
        block: The block's number.
        shards: What was stored, one per output array in the plan's order.
        voxels: Voxels written.
        valid: Of those, voxels whose input was valid.
        adopted: An earlier worker had stored the shards; they were verified and kept.
        reduction: How often batch and patch were reduced for want of memory.
        seconds: Time per stage, as in `STAGES`.
        bytes_read: Bytes of prepared input held, before compression.
        worker: Who wrote it.
    """

    block: int
    shards: tuple[ShardReceipt, ...]
    voxels: int
    valid: int
    adopted: bool
    reduction: int
    seconds: tuple[float, ...]
    bytes_read: int
    worker: str


class DeadLetter(BaseModel):
    """A block that could not be scored, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    block: str
    number: int
    region: dict[str, tuple[float, float]]
    attempts: int
    error: str
    traceback: str


class Ledger:
    """The receipts of one output, for one thread. Recorded only after their shards are durable, flushed every 5 s.

    Batches have names of their own that carry the fencing number; of two receipts for a block the one with the higher
    number counts, and of two with the same the later.

    Attributes:
        written: Per block number, whether it is done: it has a receipt that holds. bool.
    """

    def __init__(self, control: Control, plan: ScorePlan) -> None:
        self.control = control
        self.plan_hash = plan.hash
        self.arrays = plan.arrays()
        self.schema = receipt_schema(self.arrays, plan.hash)
        self.written: npt.NDArray[np.bool_] = np.zeros(plan.grid.total, bool)
        self._pending: list[Receipt] = []
        self._sequence = 0
        self._flushed_at = time.monotonic()

    def load(self) -> pa.Table:
        """Take up every receipt stored so far; the newest of each block, sorted by block. What is added outranks them.

        Raises:
            LeaseError: another run has taken over.
            IntegrityError: an object does not read, or belongs to another plan.
        """
        table = self._merged(self._stored_keys())
        if self.control.lease and len(table):
            self.control.lease.outrank(int(table["fence"].to_numpy().max()))
        self.written[:] = False
        self.written[block_numbers(table)] = True
        return table

    def add(self, receipt: Receipt) -> None:
        """Record a block, and flush when the batch is old or long enough."""
        self.written[receipt.block] = True
        self._pending.append(receipt)
        self.flush_if_due()

    def flush_if_due(self) -> None:
        """Store the receipts in hand when the batch is old or long enough; a storage outage is waited out."""
        if time.monotonic() - self._flushed_at >= FLUSH_INTERVAL_S or len(self._pending) >= FLUSH_COUNT:
            with contextlib.suppress(TransientError):
                self.flush()

    def flush(self) -> None:
        """Store the receipts not stored yet as one object.

        Raises:
            LeaseError: another run has taken over.
        """
        self._flushed_at = time.monotonic()
        self.control.require()
        if self._pending:
            table = self._table(self._pending)
            self._sequence += 1
            name = f"{BATCHES}/{batch_name(self.control.fence, self._sequence)}"
            self.control.put_new(name, parquet_bytes(table, ["worker"]))
            self._pending = []

    def forget(self, blocks: Numbers) -> None:
        """Count blocks as not done: what their receipts prove is not so any more, or is about to be replaced.

        The receipts stay, so that `verify` and `repair` know what should be there until another one says otherwise.
        """
        self.written[blocks] = False

    def write_manifest(self) -> pa.Table:
        """Store all receipts as the one object that a completed output carries, drop the batches, return them.

        What was stored meanwhile by a run that lost its lease is read again first, so that it is not dropped unread.
        """
        self.flush()
        keys = self._stored_keys()
        table = self._merged(keys)
        self.control.put(MANIFEST, parquet_bytes(table, ["worker"]))
        for key in keys:
            if key != MANIFEST:
                self.control.delete(key)
        return table

    def _stored_keys(self) -> list[str]:
        manifest = [MANIFEST] if self.control.storage.exists(MANIFEST) else []
        return manifest + [key for key, _ in self.control.storage.list(BATCHES)]

    def _merged(self, keys: Sequence[str]) -> pa.Table:
        """The newest receipt of each block in these objects, sorted by block."""
        tables = [self._read(key) for key in keys]
        table = pa.concat_tables([self.schema.empty_table(), *tables]).combine_chunks()
        # Stable, so that of equals the last in reading order, the latest batch, wins.
        order = np.lexsort((np.arange(len(table)), table["fence"].to_numpy(), block_numbers(table)))
        blocks = block_numbers(table)[order]
        newest = np.append(blocks[1:] != blocks[:-1], True) if len(blocks) else np.zeros(0, bool)
        return table.take(pa.array(order[newest]))

    def _read(self, key: str) -> pa.Table:
        where = f"{self.control.url}/{key}"
        body = self.control.get(key)
        if body is None:
            # A run that holds the lease no more may have merged it just now.
            return self.schema.empty_table()
        table = read_receipts(body, where)
        if table.schema.metadata != self.schema.metadata:
            raise IntegrityError(
                "receipts belong to another plan",
                where=where,
                measured=(table.schema.metadata or {}).get(b"plan", b"none").decode(),
                limit=self.plan_hash,
            )
        return table.cast(self.schema)

    def _table(self, receipts: Sequence[Receipt]) -> pa.Table:
        columns: dict[str, Any] = {
            "block": [r.block for r in receipts],
            "fence": [self.control.fence] * len(receipts),
            "voxels": [r.voxels for r in receipts],
            "valid": [r.valid for r in receipts],
            "adopted": [r.adopted for r in receipts],
            "reduction": [r.reduction for r in receipts],
            "bytes_read": [r.bytes_read for r in receipts],
            "worker": [r.worker for r in receipts],
        }
        for position, spec in enumerate(self.arrays):
            columns[f"{spec.name}.size"] = [r.shards[position].size for r in receipts]
            columns[f"{spec.name}.sha256"] = [r.shards[position].sha256 for r in receipts]
        for position, stage in enumerate(STAGES):
            columns[f"{stage}_s"] = [r.seconds[position] for r in receipts]
        return pa.table(columns, schema=self.schema)


def receipt_schema(arrays: Sequence[ArraySpec], plan_hash: str) -> pa.Schema:
    """The columns of receipts; the plan's hash stands in the schema's metadata."""
    fields = [
        ("block", pa.int64()),
        ("fence", pa.int64()),
        ("voxels", pa.int64()),
        ("valid", pa.int64()),
        ("adopted", pa.bool_()),
        ("reduction", pa.int8()),
        ("bytes_read", pa.int64()),
        ("worker", pa.string()),
        *((f"{spec.name}.size", pa.int64()) for spec in arrays),
        *((f"{spec.name}.sha256", pa.binary(SHA256_BYTES)) for spec in arrays),
        *((f"{stage}_s", pa.float32()) for stage in STAGES),
    ]
    return pa.schema(fields, metadata={"plan": plan_hash})


def block_numbers(table: pa.Table) -> Numbers:
    """The blocks of these receipts."""
    return np.asarray(table["block"].to_numpy(), dtype=np.int64)
