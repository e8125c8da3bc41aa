"""`verify`: every shard of an output read again and compared with its receipt, and what differs named."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from geobatch.errors import IntegrityError
from geobatch.lease import Control
from geobatch.proof import Entry, Finding, Verification, check_objects
from geobatch.score.planning import stored_plan
from geobatch.score.receipts import Ledger, block_numbers
from geobatch.score.spec import ScorePlan
from geobatch.score.worker import block_of_object, shard_object
from geobatch.shards import array_metadata, decode_shard


def verify(output_url: str, *, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Verification:
    """Read every object of a scored survey and compare size and SHA-256 with its receipt.

    Shards without a receipt, left by a run that was stopped, must decode with all their checksums.

    Raises:
        NotFoundError: no scoring run is there.
        IntegrityError: its plan or its receipts do not read.
    """
    plan, control = stored_plan(output_url), Control(output_url)
    return verify_receipts(control, plan, Ledger(control, plan).load(), on_progress)


def verify_receipts(
    control: Control,
    plan: ScorePlan,
    receipts: pa.Table,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Verification:
    """Compare what is stored with these receipts, on the Ray cluster when the output is large."""
    findings = [*_metadata_findings(control, plan), *_unreceipted(control, plan, receipts)]
    checked = check_objects(control.url, list(_entries(plan, receipts)), on_progress)
    findings += checked.findings
    return Verification(checked.shards, checked.bytes, tuple(sorted(findings, key=lambda f: (f.block, f.array))))


def _entries(plan: ScorePlan, receipts: pa.Table) -> Iterator[Entry]:
    """Block, object, size and hash of every shard that has a receipt."""
    for spec in plan.arrays():
        sizes = receipts[f"{spec.name}.size"].to_pylist()
        hashes = receipts[f"{spec.name}.sha256"].to_pylist()
        for block, size, sha256 in zip(block_numbers(receipts).tolist(), sizes, hashes, strict=True):
            yield block, shard_object(spec, plan.grid.index(block)), size, sha256


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
