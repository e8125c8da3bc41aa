"""Regions of a survey: parts to score, by axis ranges, a polygon on the map, or two horizons."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Self

import numpy as np
import numpy.typing as npt
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field, model_validator

from geobatch.blocks import Grid
from geobatch.errors import DataError, UsageError
from geobatch.formats.horizons import Floats, Horizon, read_horizon
from geobatch.formats.polygon import inside_polygon
from geobatch.storage import absolute_url
from geobatch.survey import VOLUME_AXES

Bools = npt.NDArray[np.bool_]
Range = tuple[float, float]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AxisRanges(_Frozen):
    """A box of a survey, in numbers of its axes, both ends included."""

    inline: Range | None = None
    crossline: Range | None = None
    sample: Range | None = None


class Horizons(_Frozen):
    """A band between two horizons.

    Attributes:
        top: URL of a horizon file, or a number: one time (ms) or depth (m) everywhere.
        base: The same, at or below `top`.
        shift: How far the band reaches above `top` and below `base`, in ms or m; negative numbers narrow it.
    """

    top: float | str
    base: float | str
    shift: tuple[float, float] = (0.0, 0.0)


class Region(AxisRanges):
    """A part of a survey, all that is given here together; it is rounded out to whole blocks.

    Attributes:
        time: The sample range in ms, of surveys in time.
        depth: The sample range in m, of surveys in depth.
        polygon: Corners `[x, y]` on the map, in the survey's coordinates; its border belongs to it, and where it
            crosses itself the even-odd rule decides.
        horizons: A band between two horizons.
    """

    time: Range | None = None
    depth: Range | None = None
    polygon: Annotated[tuple[tuple[float, float], ...], Field(min_length=3)] | None = None
    horizons: Horizons | None = None

    @model_validator(mode="after")
    def _one_sample_range(self) -> Self:
        named = [name for name in ("sample", "time", "depth") if getattr(self, name)]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} are the same axis: give one of them")
        return self

    def absolute(self) -> Self:
        """The region with plain paths of horizons made absolute."""
        if self.horizons is None:
            return self
        given = {"top": self.horizons.top, "base": self.horizons.base}
        urls = {key: absolute_url(place) for key, place in given.items() if isinstance(place, str)}
        return self.model_copy(update={"horizons": self.horizons.model_copy(update=urls)})


def require_domain(region: Region, domain: str) -> None:
    """Refuse a time range of a survey in depth, and the reverse.

    Raises:
        UsageError: the region names the other axis.
    """
    for name in ("time", "depth"):
        if getattr(region, name) and domain != name:
            raise UsageError(
                f"the survey has no {name} axis",
                where=f"region.{name}",
                measured=f"a survey in {domain}",
                remedy=f"Give region.{domain} or region.sample.",
            )


def wanted_blocks(grid: Grid, volume: xr.DataArray, region: Region) -> npt.NDArray[np.int64]:
    """Numbers of the blocks that hold a cell of the region, ascending.

    Args:
        grid: The grid of the survey.
        volume: The cropped survey `(inline, crossline, sample)`, lazy, samples ascending; for a polygon with the
            coordinates `cdp_x` and `cdp_y` on `(inline, crossline)`, NaN where there is no trace.
        region: What is wanted of it.

    Raises:
        UsageError: the region holds no cell of the survey, or a horizon lies off it.
        DataError: the horizons cross, or their files do not read.
    """
    box = _box(volume, region)
    if region.polygon is None and region.horizons is None:
        spans = (np.arange(c.start // b, -(-c.stop // b)) for c, b in zip(box, grid.shard, strict=True))
        return np.ravel_multi_index(np.ix_(*spans), grid.counts).ravel().astype(np.int64)
    area = _Area.of(volume, region)
    band = _Band.of(volume, region)
    per_row = math.prod(grid.counts[1:])
    found = []
    for row in range(box[0].start // grid.shard[0], -(-box[0].stop // grid.shard[0])):
        inlines = slice(max(box[0].start, row * grid.shard[0]), min(box[0].stop, (row + 1) * grid.shard[0]))
        inside = np.zeros((inlines.stop - inlines.start, volume.shape[1]), bool)
        inside[:, box[1]] = True if area is None else area.inside(inlines, box[1])
        found.append(_touched(grid, inside, *band.samples(inlines, inside, box[2])) + row * per_row)
    numbers = np.concatenate(found)
    if not numbers.size:
        raise _no_cell(volume, region)
    return numbers


def _box(volume: xr.DataArray, region: Region) -> tuple[slice, ...]:
    """The cells that the axis ranges hold, per axis."""
    cells = []
    for axis in VOLUME_AXES:
        names = ("sample", "time", "depth") if axis == "sample" else (axis,)
        name = next((name for name in names if getattr(region, name)), axis)
        cells.append(axis_cells(volume, axis, getattr(region, name), name))
    return tuple(cells)


def axis_cells(volume: xr.DataArray, axis: str, ends: Range | None, name: str = "") -> slice:
    """The cells of one axis whose numbers lie between two ends, both included; all of them without ends.

    Raises:
        UsageError: there is none; it calls the axis `name`.
    """
    numbers = _numbers(volume, axis)
    first, last = ends or (-math.inf, math.inf)
    inside = np.flatnonzero((numbers >= first) & (numbers <= last))
    if inside.size == 0:
        raise UsageError(
            f"region holds no {name or axis} of the survey",
            where=f"region.{name or axis}",
            measured=[first, last],
            limit=f"{numbers.min():g} to {numbers.max():g}, the smaller number first",
        )
    return slice(int(inside[0]), int(inside[-1]) + 1)


def _touched(grid: Grid, inside: Bools, first: Floats, stop: Floats) -> npt.NDArray[np.int64]:
    """Numbers, within one row of blocks, of those that the samples `first` up to `stop` of some trace inside touch.

    Each trace opens its first block and closes the one after its last; where more are open than closed, one is inside.
    """
    columns, layers = grid.counts[1:]
    first, stop = (np.broadcast_to(ends, inside.shape) for ends in (first, stop))
    column = np.broadcast_to(np.arange(inside.shape[1]) // grid.shard[1], inside.shape)
    wanted = inside & (first < stop)
    place = column[wanted] * (layers + 1)
    opened = np.bincount(place + first[wanted] // grid.shard[2], minlength=columns * (layers + 1))
    closed = np.bincount(place + (stop[wanted] - 1) // grid.shard[2] + 1, minlength=columns * (layers + 1))
    open_now = np.cumsum((opened - closed).reshape(columns, layers + 1), axis=1)
    return np.flatnonzero(open_now[:, :-1])


@dataclass(frozen=True)
class _Area:
    """A polygon on the map and the traces' coordinates."""

    corners: Floats
    x: Floats
    y: Floats

    @classmethod
    def of(cls, volume: xr.DataArray, region: Region) -> _Area | None:
        """The region's polygon; None without one."""
        if region.polygon is None:
            return None
        if not {"cdp_x", "cdp_y"} <= set(volume.coords):
            raise UsageError(
                "the survey has no map coordinates",
                where="region.polygon",
                limit="cdp_x and cdp_y of each trace",
                remedy="Give inline and crossline ranges.",
            )
        return cls(np.array(region.polygon), *_map_coordinates(volume))

    def inside(self, inlines: slice, crosslines: slice) -> Bools:
        """Which traces lie in the polygon."""
        return inside_polygon(self.x[inlines, crosslines], self.y[inlines, crosslines], self.corners)


@dataclass(frozen=True)
class _Band:
    """Two horizons, or one number in place of either, and the sample axis they cut."""

    top: Horizon | float
    base: Horizon | float
    shift: Range
    volume: xr.DataArray

    @classmethod
    def of(cls, volume: xr.DataArray, region: Region) -> _Band:
        """The region's horizons; without any, all samples."""
        if region.horizons is None:
            return cls(-math.inf, math.inf, (0.0, 0.0), volume)
        lines = _numbers(volume, "inline"), _numbers(volume, "crossline")
        top, base = (
            Horizon(read_horizon(place), *lines, place) if isinstance(place, str) else place
            for place in (region.horizons.top, region.horizons.base)
        )
        return cls(top, base, region.horizons.shift, volume)

    def samples(self, inlines: slice, inside: Bools, among: slice) -> tuple[Floats, Floats]:
        """First cell and the one after the last, among those of a slice, per trace or for all of them."""
        top, base = (
            surface.values(inlines, inside) if isinstance(surface, Horizon) else np.array(surface)
            for surface in (self.top, self.base)
        )
        self._require_order(inlines, inside, top, base)
        numbers = _numbers(self.volume, "sample")[among]
        first = np.searchsorted(numbers, top - self.shift[0], side="left") + among.start
        stop = np.searchsorted(numbers, base + self.shift[1], side="right") + among.start
        return first, np.where(np.isnan(top) | np.isnan(base), 0, stop)

    def _require_order(self, inlines: slice, inside: Bools, top: Floats, base: Floats) -> None:
        crossing = np.argwhere(inside & (top > base))
        if not crossing.size:
            return
        i, x = crossing[0]
        above, below = (float(np.broadcast_to(surface, inside.shape)[i, x]) for surface in (top, base))
        inline = _numbers(self.volume, "inline")[inlines][i]
        crossline = _numbers(self.volume, "crossline")[x]
        raise DataError(
            "the horizons cross",
            where=f"region.horizons, inline {inline:g}, crossline {crossline:g}",
            measured=f"top {above:g} below base {below:g}",
            limit="top at or above base on every trace of the region",
            remedy="Exchange top and base, or correct the picks; shift widens the band.",
        )


def _no_cell(volume: xr.DataArray, region: Region) -> UsageError:
    """The refusal of an empty region, with the survey's own ranges."""
    ranges = {axis: _numbers(volume, axis) for axis in VOLUME_AXES}
    if region.polygon is not None:
        ranges |= dict(zip(("x", "y"), _map_coordinates(volume), strict=True))
    known = {name: numbers[np.isfinite(numbers)] for name, numbers in ranges.items()}
    return UsageError(
        "region holds no cell of the survey",
        where="region",
        measured=region.model_dump_json(exclude_none=True, exclude_defaults=True)[:500],
        limit=", ".join(f"{n} {v.min():g} to {v.max():g}" if v.size else f"no {n}" for n, v in known.items()),
    )


def _numbers(volume: xr.DataArray, axis: str) -> Floats:
    return np.asarray(volume[axis].values, dtype=np.float64)


def _map_coordinates(volume: xr.DataArray) -> tuple[Floats, Floats]:
    x, y = (np.asarray(volume[name].transpose("inline", "crossline"), np.float64) for name in ("cdp_x", "cdp_y"))
    return x, y
