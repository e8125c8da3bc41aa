"""The output of a scoring run: arrays, control state, and when it counts as complete."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xarray as xr

from geobatch.errors import LeaseError, UsageError
from geobatch.lease import Control
from geobatch.score.dispatch import Tally
from geobatch.score.planning import PLAN, Inputs
from geobatch.score.receipts import DEAD_LETTERS, DeadLetter, Ledger, Numbers, block_numbers
from geobatch.score.spec import ScorePlan
from geobatch.score.worker import block_of_object
from geobatch.shards import ArraySpec, create_arrays, group_metadata
from geobatch.storage import open_storage
from geobatch.survey import COMPLETE, SCHEMA

GROUP = "zarr.json"
JOB = "_geobatch/job.json"
SCOPE = "_geobatch/scope.json"
SUMMARY = "_geobatch/run.json"
INCOMPLETE = "incomplete"
WRITING = "writing"
_INHERITED = ("domain", "sample_interval", "sample_unit", "crs", "bin_grid", "attribution", "quantity")


@dataclass(frozen=True)
class Stored:
    """What is stored of an output, by one listing of each array.

    Attributes:
        whole: Per block number, whether all its shards have the size that its receipt says. bool.
        sizes: Bytes of each array's shard (array, block number), -1 where there is none. int64.
    """

    whole: npt.NDArray[np.bool_]
    sizes: npt.NDArray[np.int64]

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Per block number, whether all its shards are there, of whatever size. bool."""
        return np.asarray((self.sizes >= 0).all(axis=0), bool)


class ScoredOutput:
    """The scored survey at one URL, as this run begins and ends it.

    Args:
        inputs: The run's inputs.
        plan: The run's plan.
        volume: The cropped survey, whose axes the output has.
        control: The output's control state, its lease held.
    """

    def __init__(self, inputs: Inputs, plan: ScorePlan, volume: xr.DataArray, control: Control) -> None:
        self.job, self.info, self.plan, self.control = inputs.job, inputs.info, plan, control
        coordinates, self.values = _coordinate_arrays(volume, plan)
        self.specs = [*plan.arrays(), *coordinates]
        self.begun = inputs.stored is not None
        self._asked = np.zeros(plan.grid.total, bool)

    def begin(self, wanted: Numbers) -> None:
        """Store plan, job and scope, and create the arrays, before any block is written.

        The plan is the first write: a run that ends right after it is continued by the next one.

        Raises:
            LeaseError: another run began this output just now.
        """
        if not self.begun:
            self._store_plan()
        self.control.get(JOB)
        self.control.put_json(JOB, self.job.model_dump(mode="json"))
        for first, stop in self.control.get_json(SCOPE) or []:
            self._asked[first:stop] = True
        self._asked[wanted] = True
        self.control.put_json(SCOPE, _runs(self._asked))
        if self.control.get(GROUP) is None:
            create_arrays(self.job.output, self.specs, self.values)
        self._write_group(WRITING)

    def stored(self, receipts: pa.Table) -> Stored:
        """What is stored, compared with what the receipts say."""
        grid, blocks = self.plan.grid, block_numbers(receipts)
        whole = np.zeros(grid.total, bool)
        whole[blocks] = True
        specs = self.plan.arrays()
        sizes = np.full((len(specs), grid.total), -1, np.int64)
        for position, spec in enumerate(specs):
            for key, size in self.control.storage.list(f"{spec.name}/c"):
                if (block := block_of_object(grid, key)) is not None:
                    sizes[position, block] = size
            expected = np.full(grid.total, -2, np.int64)
            expected[blocks] = receipts[f"{spec.name}.size"].to_numpy()
            whole &= sizes[position] == expected
        return Stored(whole, sizes)

    def finish(self, ledger: Ledger, tally: Tally, summary: dict[str, Any]) -> None:
        """Store manifest, dead letters and summary, and mark the output complete or incomplete: its last write.

        It is complete when every block that any run of it was asked for has its receipt.
        """
        ledger.write_manifest()
        letters = {letter.number: letter for letter in [*self.dead_letters(), *tally.dead]}
        dead = [letter for number, letter in letters.items() if not ledger.written[number]]
        self.control.put_json(DEAD_LETTERS, [letter.model_dump(mode="json") for letter in dead])
        self.control.get(SUMMARY)
        self.control.put_json(SUMMARY, summary)
        # No replica of this run writes any more, and to a stopped one of an earlier run it makes no difference.
        self.control.storage.sweep()
        self._write_group(COMPLETE if ledger.written[self._asked].all() else INCOMPLETE)

    def dead_letters(self) -> list[DeadLetter]:
        """The blocks that earlier runs could not score."""
        return [DeadLetter.model_validate(document) for document in self.control.get_json(DEAD_LETTERS) or []]

    def repair_metadata(self) -> None:
        """Write the metadata of the arrays again, and the small arrays, which are in memory."""
        create_arrays(self.job.output, self.specs, self.values)

    def _store_plan(self) -> None:
        if self.control.get(PLAN) is not None:
            raise LeaseError("another run began this output just now", where=self.job.output, remedy="Run it again.")
        self.control.put(PLAN, self.plan.model_dump_json(indent=2).encode())

    def _write_group(self, state: str) -> None:
        description = {
            "schema": SCHEMA,
            "kind": "scored",
            "variable": "class_map",
            "state": state,
            "source_survey": self.job.survey,
            "survey_identity": self.plan.survey_identity,
            "bundle": self.job.bundle,
            "bundle_hash": self.plan.bundle_hash,
            "plan_hash": self.plan.hash,
            "fence": self.control.fence,
            **{key: self.info[key] for key in _INHERITED if key in self.info},
        }
        self.control.put(GROUP, group_metadata(self.specs, {"geobatch": description}))


def require_ours(inputs: Inputs) -> None:
    """Refuse a place that holds a survey, or shards whose plan is gone.

    Raises:
        UsageError: nothing of it was changed.
    """
    storage = open_storage(inputs.job.output)
    if inputs.stored is None and (storage.exists(GROUP) or next(storage.list("class_map"), None) is not None):
        raise UsageError(
            "output exists and is no scoring run of this job",
            where=inputs.job.output,
            remedy="Give another output; nothing was changed.",
        )


def _runs(marks: npt.NDArray[np.bool_]) -> list[list[int]]:
    """The marked numbers as `[first, stop)` pairs."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], marks.astype(np.int8), [0]])))
    pairs: list[list[int]] = edges.reshape(-1, 2).tolist()
    return pairs


def _coordinate_arrays(volume: xr.DataArray, plan: ScorePlan) -> tuple[list[ArraySpec], dict[str, Any]]:
    """The coordinates of the output: those of the survey, and the class numbers."""
    specs, values = [], {}
    for name, coordinate in volume.coords.items():
        data = np.asarray(coordinate.values)
        attributes = {k: v for k, v in coordinate.attrs.items() if isinstance(v, str | int | float)}
        specs.append(ArraySpec.small(str(name), tuple(map(str, coordinate.dims)), data, **attributes))
        values[str(name)] = data
    if plan.probabilities != "none":
        classes = np.arange(len(plan.classes), dtype=np.int32)
        names = " ".join(c.name.replace(" ", "_") for c in plan.classes)
        specs.append(ArraySpec.small("class", ("class",), classes, flag_meanings=names))
        values["class"] = classes
    return specs, values
