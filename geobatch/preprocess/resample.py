"""A survey at another sample interval: anti-aliased, lazy, and the same for any part of it.

`scipy.signal.resample_poly` is a finite filter: sample k of the result, which lies at k · down / up on the source's
axis, depends on `reach` samples of the source on both sides and on no others. A region of the result is thus made from
a region of the source that begins at a multiple of `down`, where both axes meet, and it has the bits of the whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from pydantic import Field, model_validator
from xarray.backends import BackendArray
from xarray.core import indexing

from geobatch.errors import UsageError
from geobatch.preprocess.base import Float32Array, Frozen, axis_number
from geobatch.preprocess.lines import PIECE_SAMPLES
from geobatch.preprocess.missing import interpolate_gaps
from geobatch.preprocess.sampling import RATE_KEYS, Sampling, sampling_of

MOST_UP = 1000
"""Intervals must be to each other as whole numbers up to this."""
DRIFT = 0.01
"""The most by which the last sample may lie elsewhere than asked for, in samples."""
HALF_LENGTH = 10
"""Zero crossings of the filter on each side, as scipy has them."""


class Resample(Frozen):
    """Another sample interval along one axis, by `scipy.signal.resample_poly`.

    A windowed sinc (Kaiser, beta 5) cuts off at the lower of both Nyquist frequencies. The first sample stays where it
    is, and the ends of a trace go on at their value. Invalid samples are bridged by their nearest valid neighbours
    within the filter's reach, and a sample of the result is invalid when the nearest one of the source is.

    Attributes:
        interval_ms: The new interval, on an axis of time.
        interval_m: The new interval, on an axis of depth in m.
        along: Name of the axis.
    """

    interval_ms: float | None = Field(default=None, gt=0)
    interval_m: float | None = Field(default=None, gt=0)
    along: str = "sample"

    @model_validator(mode="after")
    def _one_interval(self) -> Self:
        if (self.interval_ms is None) == (self.interval_m is None):
            raise ValueError("resample needs either `interval_ms` or `interval_m`")
        return self

    def apply(self, x: xr.DataArray) -> xr.DataArray:
        """`x` at the new interval, float32, as lazy as `x` is: a region of it reads the region of `x` that it needs.

        Args:
            x: a survey, lazily opened, in memory or Dask-backed.

        Raises:
            UsageError: the axis is not there or of another unit, or the intervals have no simple ratio.
        """
        axis = axis_number(x, self.along, "resample, key along")
        if "live_mask" in x.coords and self.along in x["live_mask"].dims:
            raise UsageError(
                "dead traces cannot be resampled across",
                where=f"resample, axis {self.along}",
                remedy="Fill them first.",
            )
        sampling = sampling_of(x, self.along)
        ratio = self._ratio(sampling, x.shape[axis])
        plan = Plan(axis, ratio.numerator, ratio.denominator, x.shape[axis])
        nearest = plan.nearest(np.arange(plan.length))
        template = x.isel({self.along: nearest})
        data: Any = _dask(x.data, plan) if x.chunks is not None else indexing.LazilyIndexedArray(_Lazy(x, plan))
        result = template.copy(deep=False, data=data)
        if self.along in x.coords:
            result = result.assign_coords({self.along: _axis(x[self.along], plan)})
        rates = {key: float(x.attrs[key]) * plan.up / plan.down for key in RATE_KEYS if key in x.attrs}
        return result.assign_attrs(rates)

    def _ratio(self, sampling: Sampling | None, length: int) -> Fraction:
        """Old interval over new."""
        depth = self.interval_m is not None
        wanted = (self.interval_m if depth else self.interval_ms) or 0.0
        old = None
        if sampling is not None:
            metres = sampling.interval if sampling.unit.lower() in ("m", "metre", "meter", "metres", "meters") else None
            old = metres if depth else sampling.seconds and sampling.seconds * 1e3
        if old is None:
            raise UsageError(
                f"an interval in {'m' if depth else 'ms'} makes no sense along {self.along}",
                where="resample",
                measured="no sample interval" if sampling is None else f"steps of {sampling}",
                remedy="Give interval_ms on an axis of time, interval_m on one of depth.",
            )
        ratio = Fraction(old / wanted).limit_denominator(MOST_UP)
        if ratio.numerator not in range(1, MOST_UP + 1) or abs(float(ratio) * wanted / old - 1) * length > DRIFT:
            near = old / float(ratio) if ratio else old
            raise UsageError(
                "the intervals have no simple ratio",
                where="resample",
                measured=f"{old:g} to {wanted:g}",
                limit=f"as whole numbers up to {MOST_UP}",
                remedy=f"{near:.9g} would do.",
            )
        return ratio


@dataclass(frozen=True)
class Plan:
    """How an axis is resampled.

    Attributes:
        axis: Its number.
        up: Samples of the result for `down` of the source.
        down: See `up`.
        source: Samples of the source.
    """

    axis: int
    up: int
    down: int
    source: int

    @property
    def length(self) -> int:
        """Samples of the result."""
        return -(-self.source * self.up // self.down)

    @property
    def reach(self) -> int:
        """Samples of the source on each side that the filter looks at."""
        return -(-HALF_LENGTH * max(self.up, self.down) // self.up)

    def nearest(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The sample of the source that lies nearest to each of the result."""
        return np.minimum((2 * places * self.down + self.up) // (2 * self.up), self.source - 1)

    def needed(self, start: int, stop: int) -> tuple[int, int]:
        """The samples of the source that decide those of the result: the filter's reach, and as much to bridge gaps."""
        first = start * self.down // self.up - 2 * self.reach - 1
        last = (stop - 1) * self.down // self.up + 2 * self.reach + 2
        return max(0, first // self.down * self.down), min(self.source, last)

    def make(self, block: npt.NDArray[Any], first: int, start: int, stop: int) -> Float32Array:
        """Samples `start` to `stop` of the result, from a block of the source that begins at its sample `first`."""
        values = np.where(np.isfinite(block), block, np.nan).astype(np.float32)
        bridged = np.moveaxis(interpolate_gaps(values, self.axis, self.reach), self.axis, -1)
        table = bridged.reshape(-1, bridged.shape[-1])
        begun = first * self.up // self.down
        made = np.empty((len(table), stop - start), np.float32)
        rows = max(1, PIECE_SAMPLES // max(table.shape[1], stop - start))
        for row in range(0, len(table), rows):
            made[row : row + rows] = self._filtered(table[row : row + rows])[:, start - begun : stop - begun]
        result = np.moveaxis(made.reshape(*bridged.shape[:-1], stop - start), -1, self.axis)
        source = np.take(values, self.nearest(np.arange(start, stop)) - first, axis=self.axis)
        return np.where(np.isnan(source), np.float32(np.nan), result)

    def _filtered(self, lines: Float32Array) -> npt.NDArray[np.float64]:
        from scipy.signal import resample_poly

        valid = np.nan_to_num(lines.astype(np.float64))
        made: npt.NDArray[np.float64] = resample_poly(valid, self.up, self.down, axis=1, padtype="edge")
        return made


class _Lazy(BackendArray):
    """The result as an array that is made where it is read."""

    def __init__(self, source: xr.DataArray, plan: Plan) -> None:
        # Coordinates would be read with every part.
        self.source, self.plan = source.drop_vars(list(source.coords)), plan
        self.shape = tuple(plan.length if axis == plan.axis else n for axis, n in enumerate(source.shape))
        self.dtype = np.dtype(np.float32)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[int | slice, ...]) -> npt.NDArray[Any]:
        """The cells of a key of whole numbers and slices, whatever their step."""
        pairs = list(zip(key, self.shape, strict=True))
        ranges = [range(n)[part] if isinstance(part, slice) else range(part, part + 1) for part, n in pairs]
        squeezed: Any = tuple(slice(None) if isinstance(part, slice) else 0 for part in key)
        if not all(len(cells) for cells in ranges):
            return np.asarray(np.empty([len(cells) for cells in ranges], np.float32)[squeezed])
        spans = [slice(min(cells), max(cells) + 1) for cells in ranges]
        start, stop = spans[self.plan.axis].start, spans[self.plan.axis].stop
        first, last = self.plan.needed(start, stop)
        read: dict[Hashable, slice] = dict(zip(self.source.dims, spans, strict=True))
        read[self.source.dims[self.plan.axis]] = slice(first, last)
        made = self.plan.make(np.asarray(self.source.isel(read).values), first, start, stop)
        for axis, (cells, span) in enumerate(zip(ranges, spans, strict=True)):
            if cells.step != 1:
                made = np.take(made, np.array(cells) - span.start, axis=axis)
        return np.asarray(made[squeezed])


def _dask(data: Any, plan: Plan) -> Any:
    """The same over Dask chunks, as many along the axis as the source has."""
    columns, edges = [], np.cumsum([0, *data.chunks[plan.axis]])
    stops = [min(plan.length, -(-int(edge) * plan.up // plan.down)) for edge in edges]
    for start, stop in itertools.pairwise(stops):
        if start == stop:
            continue
        first, last = plan.needed(start, stop)
        cut = data[(slice(None),) * plan.axis + (slice(first, last),)].rechunk({plan.axis: -1})
        chunks = tuple((stop - start,) if axis == plan.axis else c for axis, c in enumerate(cut.chunks))
        meta = np.empty((0,) * data.ndim, np.float32)
        columns.append(
            cut.map_blocks(plan.make, first=first, start=start, stop=stop, chunks=chunks, dtype=np.float32, meta=meta)
        )
    return da.concatenate(columns, axis=plan.axis)


def _axis(old: xr.DataArray, plan: Plan) -> xr.DataArray:
    """The coordinate of the result: the first value of the old one, and even steps from there."""
    numbers = old.values
    places = np.arange(plan.length)
    if numbers.dtype.kind in "mM":
        step_ns = (numbers[-1] - numbers[0]) / np.timedelta64(1, "ns") / (numbers.size - 1) * plan.down / plan.up
        values = numbers[0] + np.round(places * step_ns).astype("timedelta64[ns]")
    else:
        step = (float(numbers[-1]) - float(numbers[0])) / (numbers.size - 1) * plan.down / plan.up
        values = float(numbers[0]) + places * step
    return xr.DataArray(values, dims=old.dims, attrs=old.attrs)
