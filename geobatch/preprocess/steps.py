"""The preprocessing steps: fill, clip, scale and crop.

Every step takes and returns a Dask-backed float32 DataArray and leaves coordinates, attributes and chunks as they
are. NaN marks an invalid sample and stays NaN, unless the step fills it. Figures that describe the survey
(percentiles, mean) are fitted once over the whole of it and kept in the step, so that a block is treated exactly
as the survey is. What a sample becomes depends on its own axis neighbours within `halo` and on nothing else.
"""

from functools import partial
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field, model_validator

from geobatch.errors import DataError, UsageError
from geobatch.preprocess.overlap import map_along_axis
from geobatch.preprocess.statistics import moments, percentiles

Float32Array = npt.NDArray[np.float32]
Halo = dict[str, tuple[int, int]]
DEFAULT_PERCENTILE = 99.5


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Step(_Frozen):
    @property
    def fitted(self) -> bool:
        """True when the step holds every figure it needs."""
        return True

    @property
    def halo(self) -> Halo:
        """Cells needed (before, after) each sample, per axis name; axes that need none are left out."""
        return {}

    def fit(self, x: xr.DataArray) -> Self:
        """The step with its statistics fitted over the whole of `x`; itself where it has none."""
        return self


class Fill(_Step):
    """Fills invalid samples.

    `interpolate`: each invalid sample is given the straight line between the nearest valid samples before and
    after it along the axis `along`, each looked for no further than `max_gap_traces` cells away. With only one of
    them in reach the sample takes its value; with neither it stays invalid. A gap of up to `max_gap_traces` traces
    is thus bridged whole, and a wider one is closed inwards from both sides by that many traces.
    `zero`: invalid samples become 0 and are valid from then on.
    `mask`: invalid samples stay invalid; the predictor masks them.
    """

    step: Literal["fill"] = "fill"
    method: Literal["interpolate", "zero", "mask"] = "interpolate"
    along: str = "crossline"
    max_gap_traces: int = Field(default=5, ge=1, le=1000)

    @property
    def halo(self) -> Halo:
        """`max_gap_traces` on both sides along the axis of interpolation."""
        return {self.along: (self.max_gap_traces, self.max_gap_traces)} if self.method == "interpolate" else {}

    def apply(self, x: xr.DataArray) -> xr.DataArray:
        """`x` with its invalid samples filled by the method."""
        data = dask_data(x, f"the step {self.step}")
        if self.method == "mask":
            return x
        if self.method == "zero":
            return x.copy(deep=False, data=data.map_blocks(_zero_invalid, dtype=data.dtype))
        axis = _axis_number(x, self.along)
        function = partial(_interpolate_gaps, axis=axis, reach=self.max_gap_traces)
        return x.copy(deep=False, data=map_along_axis(function, data, axis, self.max_gap_traces, self.max_gap_traces))


class ClipStatistics(_Frozen):
    """The fitted limits, in the unit of the data."""

    lower: float
    upper: float


class Clip(_Step):
    """Limits amplitudes to percentiles of the whole survey.

    `percentile` clips to plus and minus that percentile of |x|; `lower` and `upper` clip to two percentiles of x.
    Without any of them, `percentile` is 99.5.
    """

    step: Literal["clip"] = "clip"
    percentile: float | None = Field(default=None, gt=0, le=100)
    lower: float | None = Field(default=None, ge=0, le=100)
    upper: float | None = Field(default=None, ge=0, le=100)
    statistics: ClipStatistics | None = None

    @model_validator(mode="before")
    @classmethod
    def _default_percentile(cls, values: Any) -> Any:
        if isinstance(values, dict) and not {"percentile", "lower", "upper"} & values.keys():
            return {**values, "percentile": DEFAULT_PERCENTILE}
        return values

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.percentile is None and (self.lower is None or self.upper is None):
            raise ValueError("clip needs `percentile`, or both `lower` and `upper`")
        if self.percentile is not None and (self.lower is not None or self.upper is not None):
            raise ValueError("clip takes `percentile`, or `lower` and `upper`, not both forms")
        if self.lower is not None and self.upper is not None and self.lower >= self.upper:
            raise ValueError(f"clip: lower {self.lower:g} is not below upper {self.upper:g}")
        return self

    @property
    def fitted(self) -> bool:
        """True when the limits are known."""
        return self.statistics is not None

    def fit(self, x: xr.DataArray) -> Self:
        """The step with its limits: exact percentiles of the valid samples of the whole of `x`."""
        if self.lower is not None and self.upper is not None:
            lower, upper = percentiles(x, [self.lower, self.upper])
        else:
            (upper,) = percentiles(x, [self.percentile or DEFAULT_PERCENTILE], absolute=True)
            lower = -upper
        return self.model_copy(update={"statistics": ClipStatistics(lower=lower, upper=upper)})

    def apply(self, x: xr.DataArray) -> xr.DataArray:
        """`x` limited to the fitted percentiles; invalid samples stay invalid."""
        data = dask_data(x, f"the step {self.step}")
        if self.statistics is None:
            raise _not_fitted(self.step)
        limits = np.float32(self.statistics.lower), np.float32(self.statistics.upper)
        return x.copy(deep=False, data=data.map_blocks(_limit, *limits, dtype=data.dtype))


class ScaleStatistics(_Frozen):
    """The fitted centre and divisor, in the unit of the data, and how many samples they stand on."""

    centre: float
    divisor: float
    count: int


class Scale(_Step):
    """Scales amplitudes by figures of the whole survey: `standard` (x - mean) / std, `rms` x / rms."""

    step: Literal["scale"] = "scale"
    method: Literal["standard", "rms"] = "standard"
    statistics: ScaleStatistics | None = None

    @property
    def fitted(self) -> bool:
        """True when centre and divisor are known."""
        return self.statistics is not None

    def fit(self, x: xr.DataArray) -> Self:
        """The step with centre and divisor of the valid samples of the whole of `x`.

        Raises:
            DataError: the samples do not vary, so there is nothing to divide by.
        """
        found = moments(x)
        centre, divisor = (found.mean, found.std) if self.method == "standard" else (0.0, found.rms)
        if np.float32(divisor) == 0:
            raise DataError(
                "the samples do not vary, so they cannot be scaled",
                where=f"{x.name or 'array'} {x.shape}",
                measured=f"{'standard deviation' if self.method == 'standard' else 'rms'} {divisor:g}",
                limit="above 0",
                remedy="Check the region, or leave the step `scale` out.",
            )
        statistics = ScaleStatistics(centre=centre, divisor=divisor, count=found.count)
        return self.model_copy(update={"statistics": statistics})

    def apply(self, x: xr.DataArray) -> xr.DataArray:
        """`x` centred and divided; invalid samples stay invalid."""
        data = dask_data(x, f"the step {self.step}")
        if self.statistics is None:
            raise _not_fitted(self.step)
        figures = np.float32(self.statistics.centre), np.float32(self.statistics.divisor)
        return x.copy(deep=False, data=data.map_blocks(_standardise, *figures, dtype=data.dtype))


class Crop(_Step):
    """Keeps a part of the survey, before anything else.

    Ranges are inline and crossline numbers and sample times or depths (ms or m); both ends belong to the part.
    """

    step: Literal["crop"] = "crop"
    inline: tuple[float, float] | None = None
    crossline: tuple[float, float] | None = None
    sample: tuple[float, float] | None = None

    def apply(self, x: xr.DataArray) -> xr.DataArray:
        """The selected part of `x`, as lazy as `x` is.

        Raises:
            UsageError: a range is reversed, reaches more than one step beyond the survey, or holds no cell of it.
        """
        ranges = {"inline": self.inline, "crossline": self.crossline, "sample": self.sample}
        return x.isel({axis: _range_cells(x, axis, ends) for axis, ends in ranges.items() if ends is not None})


Step = Annotated[Fill | Clip | Scale | Crop, Field(discriminator="step")]
STEPS: dict[str, type[Fill | Clip | Scale | Crop]] = {"fill": Fill, "clip": Clip, "scale": Scale, "crop": Crop}


def dask_data(x: xr.DataArray, who: str) -> Any:
    """The Dask array in `x`; raises UsageError in the name of `who` when `x` holds another kind of array."""
    if x.chunks is None:
        raise UsageError(
            f"{who} takes a Dask-backed array",
            where=f"{x.name or 'array'} {x.shape}",
            remedy="Use geobatch.preprocess.read_region and prepare, or select the region and call .chunk().",
        )
    return x.data


def _axis_number(x: xr.DataArray, axis: str) -> int:
    if axis not in x.dims:
        raise UsageError(
            f"the survey has no axis {axis!r}",
            where="step fill, key along",
            limit=f"one of {', '.join(map(str, x.dims))}",
            remedy="Name one of the survey's axes.",
        )
    return x.dims.index(axis)


def _range_cells(x: xr.DataArray, axis: str, ends: tuple[float, float]) -> slice:
    _axis_number(x, axis)
    numbers = np.asarray(x[axis].values, dtype=np.float64)
    first, last = ends
    step = float(np.abs(np.diff(numbers)).max()) if numbers.size > 1 else 1.0
    inside = np.flatnonzero((numbers >= first) & (numbers <= last))
    if inside.size == 0 or first < numbers.min() - step or last > numbers.max() + step:
        raise UsageError(
            f"the crop holds no {axis} of the survey" if inside.size == 0 else f"the crop leaves the survey's {axis}s",
            where=f"step crop, key {axis}",
            measured=f"[{first:g}, {last:g}]",
            limit=f"[{numbers.min():g}, {numbers.max():g}]",
            remedy="Give [first, last] inside the survey, the smaller number first.",
        )
    return slice(int(inside[0]), int(inside[-1]) + 1)


def _not_fitted(step: str) -> UsageError:
    return UsageError(
        f"the step {step} has no statistics yet",
        remedy="Call fit() on the whole survey first, or load the chain from a bundle.",
    )


def _zero_invalid(block: Float32Array) -> Float32Array:
    return np.where(np.isfinite(block), block, np.float32(0))


def _limit(block: Float32Array, lower: np.float32, upper: np.float32) -> Float32Array:
    # NaN stays NaN. The second pass takes the place of the first: fresh memory costs more than the arithmetic.
    limited: Float32Array = np.maximum(block, lower)
    return np.minimum(limited, upper, out=limited)


def _standardise(block: Float32Array, centre: np.float32, divisor: np.float32) -> Float32Array:
    centred: Float32Array = block - centre
    return np.divide(centred, divisor, out=centred)


def _interpolate_gaps(block: Float32Array, axis: int, reach: int) -> Float32Array:
    """The block with each invalid sample filled from its nearest valid neighbours within `reach` along `axis`."""
    lines = np.moveaxis(block, axis, 0)
    shape = lines.shape
    table = lines.reshape(shape[0], -1)
    rows, columns = np.nonzero(~np.isfinite(table))
    if rows.size == 0:
        return block
    value_before, distance_before = _nearest(table, rows, columns, -1, reach)
    value_after, distance_after = _nearest(table, rows, columns, 1, reach)
    share = distance_before / np.maximum(distance_before + distance_after, 1)
    between = value_before + (value_after - value_before) * share
    filled = np.where(distance_before == 0, value_after, np.where(distance_after == 0, value_before, between))
    result = table.copy()
    result[rows, columns] = filled.astype(np.float32)
    return np.moveaxis(result.reshape(shape), 0, axis)


def _nearest(
    table: Float32Array, rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp], direction: int, reach: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Value and distance of the nearest valid row in one direction; NaN and 0 where none lies within reach."""
    value = np.full(rows.size, np.nan)
    distance = np.zeros(rows.size, dtype=np.int64)
    for offset in range(1, min(reach, table.shape[0] - 1) + 1):
        neighbour = rows + direction * offset
        candidates = np.flatnonzero((distance == 0) & (neighbour >= 0) & (neighbour < table.shape[0]))
        found = table[neighbour[candidates], columns[candidates]]
        valid = np.isfinite(found)
        value[candidates[valid]] = found[valid]
        distance[candidates[valid]] = offset
    return value, distance
