"""What a run left beside its output, read tolerantly: a report of an unfinished run shows what is there."""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from geobatch.errors import IntegrityError
from geobatch.proof import read_receipts
from geobatch.score.receipts import BATCHES, DEAD_LETTERS, MANIFEST, STAGES, block_numbers
from geobatch.storage import Storage, open_storage

NOT_SCORED, SCORED, PARTLY, FAILED = 0, 1, 2, 3


@dataclass(frozen=True)
class RunRecord:
    """The control state of one output; whatever is missing or does not read is empty.

    Attributes:
        job: the resolved job.
        plan: the plan.
        run: the summary of the last run.
        receipts: one per block written, with the columns of `score.receipts.receipt_schema`.
        dead_letters: one per block that could not be scored.
    """

    job: dict[str, Any]
    plan: dict[str, Any]
    run: dict[str, Any]
    receipts: pa.Table
    dead_letters: list[dict[str, Any]]

    @cached_property
    def block_cells(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Shape of the survey and of a block, in cells; None without a plan."""
        grid = self.plan.get("grid")
        if not isinstance(grid, dict) or not grid.get("shape") or not grid.get("shard"):
            return None
        return tuple(grid["shape"]), tuple(grid["shard"])

    @property
    def blocks_planned(self) -> int | None:
        """Blocks the run was asked for; without its summary, blocks of the whole survey."""
        wanted = dictionary(self.run.get("blocks")).get("wanted")
        if isinstance(wanted, int):
            return wanted
        if self.block_cells is None:
            return None
        shape, shard = self.block_cells
        return int(np.prod([-(-cells // block) for cells, block in zip(shape, shard, strict=True)]))

    def block_map(self) -> npt.NDArray[np.uint8] | None:
        """State of the blocks under each (inline block, crossline block): one of the constants above, uint8."""
        if self.block_cells is None:
            return None
        shape, shard = self.block_cells
        counts = [-(-cells // block) for cells, block in zip(shape, shard, strict=True)]
        written = _marked(self._blocks(), counts)
        failed = _marked(np.array([letter.get("number", -1) for letter in self.dead_letters], np.int64), counts)
        state = np.full(written.shape[:2], NOT_SCORED, dtype=np.uint8)
        state[written.any(axis=2)] = PARTLY
        state[written.all(axis=2)] = SCORED
        state[failed.any(axis=2)] = FAILED
        return state

    def stage_seconds(self) -> dict[str, float]:
        """Seconds per stage, summed over the blocks."""
        total = {stage: self.total(f"{stage}_s") for stage in STAGES}
        found = {stage: float(seconds) for stage, seconds in total.items() if seconds is not None}
        return found or {k: float(v) for k, v in dictionary(self.run.get("stage_seconds")).items()}

    def total(self, column: str) -> Any:
        """The sum of one figure over the receipts; None where none holds it."""
        if column not in self.receipts.column_names or not len(self.receipts):
            return None
        return pyarrow.compute.sum(self.receipts[column]).as_py()

    def bytes_stored(self) -> int | None:
        """Bytes of all objects written."""
        sizes = [self.total(name) for name in self.receipts.column_names if name.endswith(".size")]
        return sum(size or 0 for size in sizes) or None

    def _blocks(self) -> npt.NDArray[np.int64]:
        return block_numbers(self.receipts) if len(self.receipts) else np.zeros(0, np.int64)


def read_record(output_url: str) -> RunRecord:
    """The control state stored beside an output."""
    storage = open_storage(output_url)
    return RunRecord(
        job=dictionary(_read(storage, "_geobatch/job.json")),
        plan=dictionary(_read(storage, "_geobatch/plan.json")),
        run=dictionary(_read(storage, "_geobatch/run.json")),
        receipts=_receipts(storage),
        dead_letters=_list(_read(storage, DEAD_LETTERS)),
    )


def _receipts(storage: Storage) -> pa.Table:
    """The receipts of the manifest and of the batches not merged into it yet, one per block."""
    keys = [key for key in (MANIFEST, *(key for key, _ in storage.list(BATCHES))) if storage.exists(key)]
    tables = []
    for key in keys:
        try:
            tables.append(read_receipts(storage.get(key), key))
        except IntegrityError:
            continue
    if not tables:
        return pa.table({"block": pa.array([], pa.int64())})
    table = pa.concat_tables(tables, promote_options="default")
    _, first = np.unique(block_numbers(table)[::-1], return_index=True)
    return table.take(pa.array(len(table) - 1 - first))


def _marked(numbers: npt.NDArray[np.int64], counts: list[int]) -> npt.NDArray[np.bool_]:
    """A grid of blocks with these numbers marked; numbers outside it are left out."""
    marks = np.zeros(int(np.prod(counts)), bool)
    marks[numbers[(numbers >= 0) & (numbers < marks.size)]] = True
    return marks.reshape(counts)


def _read(storage: Storage, key: str) -> Any:
    if not storage.exists(key):
        return None
    try:
        return json.loads(storage.get(key))
    except ValueError:
        return None


def dictionary(value: Any) -> dict[str, Any]:
    """`value` where it is a dictionary, an empty one otherwise."""
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
