"""A chain of preprocessing steps, and the one way to run it on a region of a survey."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from pydantic import BaseModel, ConfigDict, model_validator

from geobatch.errors import UsageError
from geobatch.preprocess.base import Halo, dask_data
from geobatch.preprocess.grid import Crop
from geobatch.preprocess.statistics import as_dask
from geobatch.preprocess.steps import Step
from geobatch.survey import mask_dead


class Chain(BaseModel):
    """Steps in the order in which they run; a crop, where there is one, comes first.

    In JSON a chain is `{"steps": [...]}`; the bare list of a job file is read too. A fitted chain carries its
    statistics with it and gives the same bits after `Chain.model_validate_json(chain.model_dump_json())`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: tuple[Step, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, values: Any) -> Any:
        return {"steps": values} if isinstance(values, list | tuple) else values

    @model_validator(mode="after")
    def _crop_first(self) -> Self:
        if any(isinstance(step, Crop) for step in self.steps[1:]):
            raise ValueError("crop may only be the first step, and only once")
        return self

    @property
    def fitted(self) -> bool:
        """True when every step holds the figures it needs."""
        return all(step.fitted for step in self.steps)

    @property
    def halo(self) -> Halo:
        """Cells needed (before, after) per axis name: the sum over the steps. For `whole_axes` it means nothing."""
        total: Halo = {}
        for step in self.steps:
            for axis, (before, after) in step.halo.items():
                held_before, held_after = total.get(axis, (0, 0))
                total[axis] = (held_before + before, held_after + after)
        return total

    @property
    def whole_axes(self) -> frozenset[str]:
        """Names of the axes that some step needs whole: a sample then depends on its whole line."""
        return frozenset().union(*(step.whole_axes for step in self.steps))

    def reach(self, axes: Sequence[Hashable], shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Cells to be read (before, after) around a region, per axis: the halo, or the axis whole.

        Args:
            axes: Names of the axes.
            shape: Cells of the cropped survey.

        Raises:
            UsageError: a halo depends on a sample interval that is not known yet.
        """
        halo, whole = self.halo, self.whole_axes
        pairs = zip(map(str, axes), shape, strict=True)
        return tuple((n, n) if axis in whole else halo.get(axis, (0, 0)) for axis, n in pairs)

    def crop(self, x: xr.DataArray) -> xr.DataArray:
        """The part of a survey that the chain is about, as lazy as `x` is; `x` itself without a crop."""
        first = self.steps[0] if self.steps else None
        return first.apply(x) if isinstance(first, Crop) else x

    def sampled(self, x: xr.DataArray) -> Self:
        """The chain with the sample intervals of a survey; its statistics stay. No sample is read.

        A cut-off in Hz and a window in ms are other numbers of cells on a survey of another interval.

        Args:
            x: the survey, cropped or not.

        Raises:
            UsageError: a step makes no sense with the intervals of `x`.
        """
        return self.model_copy(update={"steps": tuple(step.sampled(x) for step in self.steps)})

    def fit(self, x: xr.DataArray) -> Self:
        """The chain with every statistic fitted, each over the whole cropped survey as the steps before leave it.

        Args:
            x: the whole survey, uncropped, Dask-backed or lazily opened.
        """
        prepared = _valid(as_dask(self.crop(x)))
        steps: list[Step] = []
        for step in self.steps:
            if isinstance(step, Crop):
                steps.append(step)
                continue
            fitted = step.fit(prepared)
            prepared = fitted.apply(prepared)
            steps.append(fitted)
        return self.model_copy(update={"steps": tuple(steps)})

    def apply(self, x: xr.DataArray) -> xr.DataArray:
        """`x` prepared by every step after the crop; infinite samples and dead traces count as invalid.

        Args:
            x: a cropped survey or a part of it, Dask-backed. Cells nearer to the edge of a part than the chain's
                halo differ from those of the whole, and all of them when the part lacks cells of an axis that is
                needed whole: `read_region` reads what is needed and `prepare` trims it.
        """
        prepared = _valid(x)
        for step in self.steps:
            prepared = prepared if isinstance(step, Crop) else step.apply(prepared)
        return prepared


@dataclass(frozen=True)
class RawRegion:
    """A region of a survey in memory, with what the chain needs around it.

    Attributes:
        values: the cells, with `live_mask` as a coordinate where the survey has one.
        trim: where the region lies in `values`, per axis.
    """

    values: xr.DataArray
    trim: dict[Hashable, slice]


def read_region(cropped: xr.DataArray, chain: Chain, region: Sequence[slice]) -> RawRegion:
    """The region and what the chain needs around it, clipped to the survey, in memory: no chunk is read twice.

    Args:
        cropped: the survey after `chain.crop`, opened lazily without Dask chunks.
        chain: fitted.
        region: one slice per axis in indices of the cropped survey, stop exclusive, without a step.

    Raises:
        UsageError: the region does not lie inside the cropped survey.
    """
    _require_inside(cropped, region)
    read: dict[Hashable, slice] = {}
    trim: dict[Hashable, slice] = {}
    reach = chain.reach(cropped.dims, cropped.shape)
    for axis, size, cells, (before, after) in zip(cropped.dims, cropped.shape, region, reach, strict=True):
        start = max(0, cells.start - before)
        read[axis] = slice(start, min(size, cells.stop + after))
        trim[axis] = slice(cells.start - start, cells.stop - start)
    return RawRegion(cropped.isel(read).load(), trim)


def prepare(raw: RawRegion, chain: Chain) -> npt.NDArray[np.float32]:
    """The region prepared and trimmed to itself, float32, NaN where invalid.

    It equals the same region of `chain.apply(chain.crop(survey))` bit for bit. The graph is one Dask chunk, computed
    in the calling thread.
    """
    # The array alone becomes Dask-backed: chunking coordinates too would cost a graph node for each. `from_array`
    # would copy every sample, or hash it to name the chunk, either of which takes as long as the preprocessing itself.
    values = raw.values.values
    graph = {("region", *(0,) * values.ndim): values}
    chunk = da.Array(graph, "region", tuple((n,) for n in values.shape), meta=values)
    block = raw.values.copy(deep=False, data=chunk)
    prepared = chain.apply(block).isel(raw.trim)
    return np.ascontiguousarray(prepared.compute(scheduler="synchronous").values)


def _require_inside(x: xr.DataArray, region: Sequence[slice]) -> None:
    inside = len(region) == x.ndim and all(
        cells.step in (None, 1)
        and cells.start is not None
        and cells.stop is not None
        and 0 <= cells.start < cells.stop <= size
        for cells, size in zip(region, x.shape, strict=False)
    )
    if not inside:
        raise UsageError(
            "the region does not lie inside the survey",
            where=f"{x.name or 'array'} {tuple(map(str, x.dims))}",
            measured=str([(cells.start, cells.stop, cells.step) for cells in region]),
            limit=f"(0, size) with sizes {x.shape}",
            remedy="Give one slice per axis, with start and stop, in indices of the cropped survey.",
        )


def _valid(x: xr.DataArray) -> xr.DataArray:
    """`x` in float32, NaN where a sample is infinite or its trace is dead by the coordinate `live_mask`."""
    data = dask_data(x, "the chain").astype(np.float32)
    return mask_dead(x.copy(deep=False, data=data.map_blocks(_infinite_to_nan, dtype=np.float32)))


def _infinite_to_nan(block: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    infinite = np.isinf(block)
    return np.where(infinite, np.float32(np.nan), block) if infinite.any() else block
