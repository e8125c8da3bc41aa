"""Receipts: which blocks are written, proven by the checksum of every shard, kept as objects beside the output."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict

from geobatch.errors import IntegrityError, TransientError
from geobatch.storage import Storage, open_storage
from geobatch.survey import control_url

FLUSH_INTERVAL_S = 5.0
FLUSH_COUNT = 1000
MANIFEST = "manifest.json"
BATCHES = "receipts"
DEAD_LETTERS = "dead_letters.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShardReceipt(_Frozen):
    """One stored object: its key under the output, its size in bytes and the SHA-256 of its bytes."""

    key: str
    size: int
    sha256: str


class Receipt(_Frozen):
    """Proof that a block was written.

    Attributes:
        block: The block's key, such as `0/3/1`.
        plan: Hash of the plan.
        bundle: Hash of the bundle.
        shards: What was stored.
        voxels: Voxels written.
        valid: Of those, voxels whose input was valid.
        adopted: An earlier worker had stored the shards; they were verified and kept.
        seconds: Time per stage: read, preprocess, predict, write.
        bytes_read: Bytes of prepared input held, before compression.
        worker: Who wrote it.
    """

    block: str
    plan: str
    bundle: str
    shards: tuple[ShardReceipt, ...]
    voxels: int
    valid: int
    adopted: bool
    seconds: dict[str, float]
    bytes_read: int
    worker: str


class DeadLetter(_Frozen):
    """A block that could not be scored, and why."""

    block: str
    region: dict[str, tuple[float, float]]
    attempts: int
    error: str
    traceback: str


class Ledger:
    """The receipts of one output. Recorded only after their shards are durable, flushed at least every 5 s.

    Batches have unique names, so that no writer ever replaces another's.
    """

    def __init__(self, output_url: str, plan_hash: str) -> None:
        self.storage: Storage = open_storage(control_url(output_url))
        self.plan_hash = plan_hash
        self.receipts: dict[str, Receipt] = {}
        self._pending: list[Receipt] = []
        self._forgotten: set[str] = set()
        self._flushed_at = time.monotonic()
        self._lock = threading.Lock()

    def load(self) -> dict[str, Receipt]:
        """Every receipt stored so far, by block key.

        Raises:
            IntegrityError: a batch does not read, or belongs to another plan.
        """
        self._read_stored()
        return self.receipts

    def _read_stored(self) -> list[str]:
        """Take up the receipts of the manifest and of every batch; the objects they were read from."""
        stored = [MANIFEST] if self.storage.exists(MANIFEST) else []
        stored += [key for key, _ in self.storage.list(BATCHES)]
        for key in stored:
            for receipt in _read_batch(self.storage, key):
                if receipt.plan != self.plan_hash:
                    raise IntegrityError(
                        "receipt belongs to another plan",
                        where=f"{self.storage.url}/{key}",
                        measured=receipt.plan,
                        limit=self.plan_hash,
                    )
                if receipt.block not in self._forgotten:
                    self.receipts[receipt.block] = receipt
        return stored

    def add(self, receipt: Receipt) -> None:
        """Record a block, and flush when the batch is old or long enough."""
        with self._lock:
            self.receipts[receipt.block] = receipt
            self._pending.append(receipt)
        self.flush_if_due()

    def flush_if_due(self) -> None:
        """Store the receipts in hand when the batch is old or long enough; a storage outage is waited out."""
        with self._lock:
            due = time.monotonic() - self._flushed_at >= FLUSH_INTERVAL_S or len(self._pending) >= FLUSH_COUNT
        if due:
            with contextlib.suppress(TransientError):
                self.flush()

    def flush(self) -> None:
        """Store the receipts not stored yet as one object."""
        with self._lock:
            self._flushed_at = time.monotonic()
            if self._pending:
                name = f"{BATCHES}/{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.json"
                self.storage.put(name, _batch_bytes(self._pending))
                self._pending = []

    def write_manifest(self) -> None:
        """Store all receipts as the one object that a completed output carries, and drop the batches it holds.

        What another run recorded meanwhile is read again first, so that it is neither lost nor dropped.
        """
        self.flush()
        ours = dict(self.receipts)
        merged = self._read_stored()
        self.receipts = {**self.receipts, **ours}
        self.storage.put(MANIFEST, _batch_bytes(self.receipts[k] for k in sorted(self.receipts)))
        for key in merged:
            if key != MANIFEST:
                self.storage.delete(key)

    def keep_only(self, blocks: set[str]) -> None:
        """Forget receipts of other blocks: their shards are gone or of another size."""
        forgotten = set(self.receipts) - blocks
        self.receipts = {block: receipt for block, receipt in self.receipts.items() if block in blocks}
        self._forgotten = forgotten


def _batch_bytes(receipts: Iterable[Receipt]) -> bytes:
    return json.dumps([receipt.model_dump(mode="json") for receipt in receipts], indent=1).encode()


def _read_batch(storage: Storage, key: str) -> list[Receipt]:
    try:
        documents: list[Any] = json.loads(storage.get(key))
        return [Receipt.model_validate(document) for document in documents]
    except ValueError as error:
        raise IntegrityError(
            "receipts do not read", where=f"{storage.url}/{key}", measured=str(error).splitlines()[0]
        ) from error
