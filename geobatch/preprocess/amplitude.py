"""Steps that change amplitudes: clip and scale by figures of the whole survey, balance and AGC by each trace's own."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, Self

import numpy as np
import xarray as xr
from pydantic import Field, model_validator

from geobatch.errors import DataError
from geobatch.preprocess.base import (
    Float32Array,
    Float64Array,
    Frozen,
    Mask,
    StepBase,
    axis_number,
    dask_data,
    not_fitted,
)
from geobatch.preprocess.lines import each_line, window_sums
from geobatch.preprocess.overlap import map_along_axis, map_whole_axis
from geobatch.preprocess.statistics import moments, percentiles
from geobatch.preprocess.windows import WindowedStep

DEFAULT_PERCENTILE = 99.5


class ClipStatistics(Frozen):
    """The fitted limits, in the unit of the data."""

    lower: float
    upper: float


class Clip(StepBase):
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
            raise not_fitted(self.step)
        limits = np.float32(self.statistics.lower), np.float32(self.statistics.upper)
        return x.copy(deep=False, data=data.map_blocks(_limit, *limits, dtype=data.dtype))


class ScaleStatistics(Frozen):
    """The fitted centre and divisor, in the unit of the data, and how many samples they stand on."""

    centre: float
    divisor: float
    count: int


class Scale(StepBase):
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
            raise not_fitted(self.step)
        figures = np.float32(self.statistics.centre), np.float32(self.statistics.divisor)
        return x.copy(deep=False, data=data.map_blocks(_standardise, *figures, dtype=data.dtype))


class Balance(StepBase):
    """Scales every trace by its own figures: `standard` (x - mean) / std, `rms` x / rms.

    They are those of the trace's valid samples along the whole axis `along`. A trace that does not vary becomes 0 by
    `standard`, and one of zeros stays as it is. What differs from trace to trace, absolute amplitude included, is
    taken away; `scale` keeps it.
    """

    step: Literal["balance"] = "balance"
    method: Literal["standard", "rms"] = "rms"
    along: str = "sample"

    @property
    def whole_axes(self) -> frozenset[str]:
        """The axis of the traces."""
        return frozenset({self.along})

    def apply(self, x: xr.DataArray) -> xr.DataArray:
        """`x` with its traces balanced; invalid samples stay invalid."""
        data = dask_data(x, f"the step {self.step}")
        axis = axis_number(x, self.along, f"step {self.step}, key along")
        scaled = partial(_balanced, standard=self.method == "standard")
        function = partial(each_line, function=scaled, axis=axis, gaps="zero")
        return x.copy(deep=False, data=map_whole_axis(function, data, axis))


class Agc(WindowedStep):
    """Automatic gain control: each sample over the RMS of the valid samples in a window centred on it.

    The window is cut off at the ends of the trace and skips invalid samples, and the mean is over what is left, as in
    Seismic Unix (`sugain agc=1`). Where the RMS is 0 the sample is 0.
    """

    step: Literal["agc"] = "agc"

    def apply(self, x: xr.DataArray) -> xr.DataArray:
        """`x` with its gain controlled; invalid samples stay invalid."""
        data = dask_data(x, f"the step {self.step}")
        axis, half = axis_number(x, self.along, f"step {self.step}, key along"), self.checked_half(x)
        function = partial(each_line, function=partial(_gained, half=half), axis=axis, gaps="zero")
        return x.copy(deep=False, data=map_along_axis(function, data, axis, half, half))


def _balanced(lines: Float64Array, valid: Mask, standard: bool) -> Float64Array:
    count = np.maximum(valid.sum(axis=1, keepdims=True), 1)
    centred = np.where(valid, lines - lines.sum(axis=1, keepdims=True) / count, 0) if standard else lines
    divisor = np.sqrt(np.square(centred).sum(axis=1, keepdims=True) / count)
    return np.asarray(np.divide(centred, divisor, out=np.zeros_like(lines), where=divisor > 0), np.float64)


def _gained(lines: Float64Array, valid: Mask, half: int) -> Float64Array:
    count = window_sums(valid.astype(np.float64), half)
    rms = np.sqrt(window_sums(np.square(lines), half) / np.maximum(count, 1))
    return np.divide(lines, rms, out=np.zeros_like(lines), where=rms > 0)


def _limit(block: Float32Array, lower: np.float32, upper: np.float32) -> Float32Array:
    # NaN stays NaN. The second pass takes the place of the first: fresh memory costs more than the arithmetic.
    limited: Float32Array = np.maximum(block, lower)
    return np.minimum(limited, upper, out=limited)


def _standardise(block: Float32Array, centre: np.float32, divisor: np.float32) -> Float32Array:
    centred: Float32Array = block - centre
    return np.divide(centred, divisor, out=centred)
