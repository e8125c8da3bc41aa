"""The output of a scoring run: arrays, control state, and when it counts as complete."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from geobatch.errors import NotFoundError, UsageError
from geobatch.score.dispatch import Tally
from geobatch.score.planning import PLAN, Inputs
from geobatch.score.receipts import DEAD_LETTERS, DeadLetter, Ledger, Receipt
from geobatch.score.spec import ScorePlan
from geobatch.shards import ArraySpec, Index, create_arrays, finish_group
from geobatch.storage import Storage, open_storage
from geobatch.survey import COMPLETE, SCHEMA, control_url

JOB = "job.json"
SCOPE = "scope.json"
SUMMARY = "run.json"
INCOMPLETE = "incomplete"
WRITING = "writing"
_INHERITED = ("domain", "sample_interval", "sample_unit", "crs", "bin_grid", "attribution", "quantity")

Box = list[list[int]]


class ScoredOutput:
    """The scored survey at one URL, as this run begins and ends it.

    Args:
        inputs: The run's inputs.
        plan: The run's plan.
        volume: The cropped survey, whose axes the output has.
    """

    def __init__(self, inputs: Inputs, plan: ScorePlan, volume: xr.DataArray) -> None:
        self.job, self.info, self.plan = inputs.job, inputs.info, plan
        self.storage: Storage = open_storage(inputs.job.output)
        self.control: Storage = open_storage(control_url(inputs.job.output))
        self.begun = inputs.stored is not None
        coordinates, self.values = _coordinate_arrays(volume, plan)
        self.specs = [*plan.arrays(), *coordinates]

    def begin(self, wanted: Sequence[Index]) -> None:
        """Store plan, job and scope, and create the arrays, before any block is written.

        The plan is the first write: a run that ends right after it is continued by the next one.

        Raises:
            UsageError: something else is there, or another run began just now.
        """
        if not self.begun:
            self._require_empty()
            if not self.control.put_if_absent(PLAN, self.plan.model_dump_json(indent=2).encode()):
                raise UsageError(
                    "another run began this output just now", where=self.job.output, remedy="Run the job again."
                )
        self.control.put(JOB, _json(self.job.model_dump(mode="json")))
        box = [[min(axis), max(axis) + 1] for axis in zip(*wanted, strict=True)]
        self.control.put(SCOPE, _json([*(known for known in self._scope() if known != box), box]))
        if not self.storage.exists("zarr.json"):
            create_arrays(self.job.output, self.specs, self.values)
        self._write_group(WRITING)

    def stored_whole(self, receipts: Iterable[Receipt]) -> set[str]:
        """Keys of the blocks whose shards are all stored at the size their receipts say: one listing per array."""
        sizes = {key: size for spec in self.plan.arrays() for key, size in self.storage.list(f"{spec.name}/c")}
        return {r.block for r in receipts if all(sizes.get(shard.key) == shard.size for shard in r.shards)}

    def finish(self, ledger: Ledger, tally: Tally, summary: dict[str, Any]) -> None:
        """Store manifest, dead letters and summary, and mark the output complete or incomplete: its last write.

        It is complete when every block that any run of it was asked for has its receipt.
        """
        ledger.write_manifest()
        letters = {letter.block: letter for letter in [*self._dead_letters(), *tally.dead]}
        dead = [letter for block, letter in letters.items() if block not in ledger.receipts]
        self.control.put(DEAD_LETTERS, _json([letter.model_dump(mode="json") for letter in dead]))
        self.control.put(SUMMARY, _json(summary))
        asked = (
            "/".join(map(str, index))
            for box in self._scope()
            for index in itertools.product(*(range(first, stop) for first, stop in box))
        )
        self._write_group(COMPLETE if all(block in ledger.receipts for block in asked) else INCOMPLETE)

    def _require_empty(self) -> None:
        """Refuse a place that holds a survey, or shards whose plan is gone."""
        strangers = self.storage.exists("zarr.json") or next(self.storage.list("class_map"), None) is not None
        if strangers:
            raise UsageError(
                "output exists and is no scoring run of this job",
                where=self.job.output,
                remedy="Give another output; nothing was changed.",
            )

    def _scope(self) -> list[Box]:
        return self._read(SCOPE)

    def _dead_letters(self) -> list[DeadLetter]:
        return [DeadLetter.model_validate(document) for document in self._read(DEAD_LETTERS)]

    def _read(self, name: str) -> list[Any]:
        try:
            found: list[Any] = json.loads(self.control.get(name))
        except NotFoundError:
            return []
        return found

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
            **{key: self.info[key] for key in _INHERITED if key in self.info},
        }
        finish_group(self.job.output, self.specs, {"geobatch": description})


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


def _json(document: Any) -> bytes:
    return json.dumps(document, indent=2).encode()
