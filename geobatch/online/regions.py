"""Regions of surveys in storage: the bulk path's result for any part of a survey."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
import torch
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field

from geobatch.blocks import Halo, Patch
from geobatch.errors import MismatchError
from geobatch.online.bodies import require_voxels
from geobatch.online.engine import Engine
from geobatch.online.memory import READ_CELLS
from geobatch.online.places import require_allowed
from geobatch.online.refusal import refusal
from geobatch.preprocess import Chain, prepare, read_region
from geobatch.score.match import describe_data, require_right_data
from geobatch.score.planning import stored_plan
from geobatch.score.predictor import INVALID, Prediction, Predictor, Probabilities
from geobatch.score.region import axis_cells
from geobatch.score.spec import NUMERICS, ScorePlan
from geobatch.storage import open_storage
from geobatch.survey import (
    VOLUME_AXES,
    open_survey,
    require_complete,
    require_every_shard,
    survey_info,
    valid_volume,
)

Cells = tuple[slice, ...]
Ends = Annotated[tuple[float, float], Field(description="first and last number of the axis, both included")]
PIECE = 128
LEAST_PIECE = 8


class RegionRequest(BaseModel):
    """A part of a survey, in numbers of its axes, both ends included; absent axes are whole.

    Exactly one of `plan` and `statistics` says by which figures the survey is prepared.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    survey: str = Field(description="URL of the survey")
    inline: Ends | None = None
    crossline: Ends | None = None
    sample: Ends | None = None
    plan: str | None = Field(
        default=None, description="URL of a scored output: its fitted statistics, grid and crop are used"
    )
    statistics: Literal["bundle"] | None = Field(default=None, description="the statistics of the training data")


@dataclass(frozen=True)
class RegionWork:
    """A region that was found right, ready to be predicted.

    Attributes:
        cropped: The survey, after the plan's crop, lazy.
        chain: The preprocessing, fitted.
        cells: The region in cells of `cropped`.
        pieces: Patches whose kept parts cover the region, in groups that are read at once.
        predictor: What predicts them.
        threads: Torch threads.
        notes: What is told with the answer.
    """

    cropped: xr.DataArray
    chain: Chain
    cells: Cells
    pieces: Sequence[Sequence[Patch]]
    predictor: Predictor
    threads: int
    notes: dict[str, str]


class Regions:
    """Scores regions of surveys under the allowed roots.

    Args:
        engine: The network.
        allowed: Roots of surveys and scored outputs.
        max_voxels: The most voxels of a region.
    """

    def __init__(self, engine: Engine, allowed: Sequence[str], max_voxels: int) -> None:
        self._engine, self._allowed, self._max_voxels = engine, tuple(allowed), max_voxels

    def plan(self, request: RegionRequest, probabilities: Probabilities) -> RegionWork:
        """The work of a request.

        Raises:
            HTTPException: 403 for a place that is not allowed, 422 for a request that cannot be right, 413 for too
                many voxels.
            MismatchError: survey, plan and bundle do not belong together.
            NotFoundError: survey or plan are not there.
        """
        survey = require_allowed(request.survey, self._allowed, "survey")
        if (request.plan is None) == (request.statistics is None):
            raise refusal(
                422,
                "statistics are not said",
                where="plan, statistics",
                measured="both" if request.plan else "neither",
                limit="`plan`, the URL of a scored output, or `statistics: bundle`",
                remedy="Bulk scoring fits statistics to the whole survey: name its output as plan to use the same.",
            )
        volume, info = _open_volume(survey, open_storage(survey).version("zarr.json"))
        warnings = self._require_right_data(info, survey)
        if request.plan is None:
            work = self._by_bundle(volume, request, probabilities)
        else:
            work = self._by_plan(volume, request, probabilities, str(info.get("identity")))
        if warnings:
            work.notes["warnings"] = "; ".join(warnings)
        return work

    def predict(self, work: RegionWork) -> Prediction:
        """What the network says of the region: the cells that the bulk path would write."""
        torch.set_num_threads(work.threads)
        shape = tuple(cells.stop - cells.start for cells in work.cells)
        classes = len(self._engine.spec.classes)
        class_map = np.full(shape, INVALID, np.uint8)
        probability: Any = None
        if work.predictor.probabilities == "uint8":
            probability = np.full((classes, *shape), INVALID, np.uint8)
        elif work.predictor.probabilities == "float32":
            probability = np.full((classes, *shape), np.nan, np.float32)
        for patches in work.pieces:
            seen, kept = _hull([p.see for p in patches]), _hull([p.keep for p in patches])
            values = prepare(read_region(work.cropped, work.chain, seen), work.chain)
            origin = [cells.start for cells in seen]
            if not np.isfinite(values[_shifted(kept, origin)]).any():
                continue
            part = work.predictor.predict(values, patches, origin)
            common = _intersection(kept, work.cells)
            source = _shifted(common, [cells.start for cells in kept])
            target = _shifted(common, [cells.start for cells in work.cells])
            class_map[target] = part.class_map[source]
            if probability is not None and part.probability is not None:
                probability[(slice(None), *target)] = part.probability[(slice(None), *source)]
        return Prediction(class_map, probability)

    def _require_right_data(self, info: dict[str, Any], survey: str) -> list[str]:
        try:
            return require_right_data(self._engine.spec, describe_data(info, ()), survey, force=False)
        except MismatchError as error:
            error.remedy = "Name another survey, or serve a bundle that was trained on such data."
            raise

    def _by_bundle(self, volume: xr.DataArray, request: RegionRequest, probabilities: Probabilities) -> RegionWork:
        """The region with the statistics of the bundle, in pieces of its own."""
        engine, chain = self._engine, self._engine.spec.chain.sampled(volume)
        cells = self._cells(volume, request)
        pieces = self._pieces(volume.shape, cells, chain)
        notes = {"statistics": "bundle"}
        return RegionWork(volume, chain, cells, pieces, engine.predictor(probabilities), engine.threads, notes)

    def _by_plan(
        self, volume: xr.DataArray, request: RegionRequest, probabilities: Probabilities, identity: str
    ) -> RegionWork:
        """The region in the blocks and patches of a bulk run, with the statistics that run was fitted with."""
        url = require_allowed(str(request.plan), self._allowed, "plan")
        plan = stored_plan(url)
        for what, ours, theirs in (
            ("bundle", self._engine.spec.hash, plan.bundle_hash),
            ("survey", identity, plan.survey_identity),
            ("numerical version", NUMERICS, plan.numerics),
        ):
            if ours != theirs:
                raise MismatchError(
                    f"plan is of another {what}",
                    where=url,
                    measured=theirs,
                    limit=ours,
                    remedy="Name an output that this bundle scored from this survey.",
                )
        cropped = plan.chain.crop(volume)
        cells = self._cells(cropped, request)
        pieces = list(_touching(plan, cells))
        self._require_fits(plan, pieces)
        predictor = self._engine.plan_predictor(plan, probabilities)
        notes = {"statistics": plan.statistics, "plan": plan.hash}
        return RegionWork(cropped, plan.chain, cells, pieces, predictor, plan.threads, notes)

    def _cells(self, volume: xr.DataArray, request: RegionRequest) -> Cells:
        cells = tuple(axis_cells(volume, axis, getattr(request, axis)) for axis in VOLUME_AXES)
        require_voxels([c.stop - c.start for c in cells], self._max_voxels, "region")
        return cells

    def _pieces(self, shape: tuple[int, ...], cells: Cells, chain: Chain) -> list[Sequence[Patch]]:
        """Patches in pieces of what memory can hold of their reads: those of a chain may be whole axes."""
        part, reach = [min(PIECE, c.stop - c.start) for c in cells], chain.reach(VOLUME_AXES, shape)
        free = [axis for axis, name in enumerate(VOLUME_AXES) if name not in chain.whole_axes] or [0]
        while True:
            grid = self._engine.grid(shape, tuple(part))
            pieces = [grid.patches(cut) for cut in _parts(cells, part)]
            longest = max(free, key=lambda axis: part[axis])
            fits = max(_cells_read(patches, reach, shape) for patches in pieces) <= max(self._max_voxels, READ_CELLS)
            if fits or part[longest] <= LEAST_PIECE:
                return list(pieces)
            part[longest] = -(-part[longest] // 2)

    def _require_fits(self, plan: ScorePlan, pieces: Sequence[Sequence[Patch]]) -> None:
        """Refuse a plan whose patches or blocks are too large for this server's memory."""
        patch = math.prod(min(n, p) for n, p in zip(plan.grid.shape, plan.grid.patch, strict=True)) * plan.batch
        read = max(_cells_read(patches, plan.grid.reach, plan.grid.shape) for patches in pieces)
        most_read = max(self._max_voxels, READ_CELLS)
        if patch > self._engine.network_cells or read > most_read:
            raise refusal(
                422,
                "plan does not fit in the memory of this server",
                where="plan",
                measured=f"{patch} cells a forward pass, {read} cells read at once",
                limit=f"{self._engine.network_cells} and {most_read} cells",
                remedy="Use `statistics: bundle`, or a server with more memory.",
            )


@lru_cache(maxsize=8)
def _open_volume(url: str, version: str) -> tuple[xr.DataArray, dict[str, Any]]:
    """The volume of a complete survey, lazy, and its description; `version` tells one survey at a URL from the next."""
    dataset = open_survey(url)
    require_complete(dataset, url)
    require_every_shard(dataset, url)
    return valid_volume(dataset, url), survey_info(dataset, url)


def _parts(cells: Cells, piece: Sequence[int]) -> Iterator[Cells]:
    """`cells` cut into pieces, the last of each axis as long as what is left."""
    spans = [
        [slice(start, min(start + p, c.stop)) for start in range(c.start, c.stop, p)]
        for c, p in zip(cells, piece, strict=True)
    ]
    return itertools.product(*spans)


def _touching(plan: ScorePlan, cells: Cells) -> Iterator[list[Patch]]:
    """Per block of a plan that the region touches, its patches that are needed for the same bits as in bulk."""
    for index in plan.grid.indices(cells):
        patches = plan.grid.patches(plan.grid.block(index).write)
        # Bits depend on what shares a forward pass: a batch stays together, single patches are picked.
        yield patches if plan.batch > 1 else [p for p in patches if _size(_intersection(p.keep, cells))]


def _cells_read(patches: Sequence[Patch], reach: Halo, shape: Sequence[int]) -> int:
    """Cells that preprocessing reads for these patches."""
    hull = zip(_hull([patch.see for patch in patches]), reach, shape, strict=True)
    return math.prod(min(n, c.stop + after) - max(0, c.start - before) for c, (before, after), n in hull)


def _hull(regions: Sequence[Cells]) -> Cells:
    return tuple(slice(min(c.start for c in axis), max(c.stop for c in axis)) for axis in zip(*regions, strict=True))


def _intersection(ours: Cells, theirs: Cells) -> Cells:
    starts = [max(a.start, b.start) for a, b in zip(ours, theirs, strict=True)]
    stops = [min(a.stop, b.stop) for a, b in zip(ours, theirs, strict=True)]
    return tuple(slice(start, max(start, stop)) for start, stop in zip(starts, stops, strict=True))


def _shifted(region: Cells, origin: Sequence[int]) -> Cells:
    return tuple(slice(c.start - o, c.stop - o) for c, o in zip(region, origin, strict=True))


def _size(region: Cells) -> int:
    return math.prod(c.stop - c.start for c in region)
