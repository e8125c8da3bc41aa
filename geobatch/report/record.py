"""What a run left beside its output, read tolerantly: a report of an unfinished run shows what is there."""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from geobatch.storage import Storage, open_storage
from geobatch.survey import control_url

NOT_SCORED, SCORED, PARTLY, FAILED = 0, 1, 2, 3


@dataclass(frozen=True)
class RunRecord:
    """The control state of one output; whatever is missing or does not read is empty.

    Attributes:
        job: the resolved job.
        plan: the plan.
        run: the summary of the last run.
        receipts: one per block written.
        dead_letters: one per block that could not be scored.
    """

    job: dict[str, Any]
    plan: dict[str, Any]
    run: dict[str, Any]
    receipts: list[dict[str, Any]]
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
        written = np.zeros(counts, dtype=bool)
        failed = np.zeros(counts, dtype=bool)
        for marks, entries in ((written, self.receipts), (failed, self.dead_letters)):
            for entry in entries:
                index = block_index(str(entry.get("block", "")))
                if len(index) == len(counts) and all(i < count for i, count in zip(index, counts, strict=True)):
                    marks[index] = True
        state = np.full(written.shape[:2], NOT_SCORED, dtype=np.uint8)
        state[written.any(axis=2)] = PARTLY
        state[written.all(axis=2)] = SCORED
        state[failed.any(axis=2)] = FAILED
        return state

    def stage_seconds(self) -> dict[str, float]:
        """Seconds per stage, summed over the blocks."""
        total: dict[str, float] = {}
        for receipt in self.receipts:
            for stage, seconds in dictionary(receipt.get("seconds")).items():
                total[stage] = total.get(stage, 0.0) + float(seconds)
        return total or {k: float(v) for k, v in dictionary(self.run.get("stage_seconds")).items()}

    def total(self, key: str) -> int | None:
        """The sum of one figure over the receipts; None where none holds it."""
        found = [receipt[key] for receipt in self.receipts if isinstance(receipt.get(key), int)]
        return sum(found) if found else None

    def bytes_stored(self) -> int | None:
        """Bytes of all objects written."""
        sizes = [shard.get("size", 0) for receipt in self.receipts for shard in receipt.get("shards", [])]
        return sum(sizes) if sizes else None


def read_record(output_url: str) -> RunRecord:
    """The control state stored beside an output."""
    storage = open_storage(control_url(output_url))
    receipts = _list(_read(storage, "manifest.json"))
    if not receipts:
        batches = sorted(key for key, _ in storage.list("receipts"))
        receipts = [receipt for key in batches for receipt in _list(_read(storage, key))]
    return RunRecord(
        job=dictionary(_read(storage, "job.json")),
        plan=dictionary(_read(storage, "plan.json")),
        run=dictionary(_read(storage, "run.json")),
        receipts=receipts,
        dead_letters=_list(_read(storage, "dead_letters.json")),
    )


def block_index(key: str) -> tuple[int, ...]:
    """The index in a block's key, such as `0/3/1`; empty when it is none."""
    parts = key.split("/")
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else ()


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
