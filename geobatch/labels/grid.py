"""The grid of a survey that labels are painted on: where its cells are on the map and along the vertical axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import xarray as xr

from geobatch.errors import MismatchError
from geobatch.survey import VOLUME_AXES, survey_info

Floats = npt.NDArray[np.float64]
RASTER_AXES = ("y", "x")


@dataclass(frozen=True)
class LabelGrid:
    """Rows and columns on the map, and in a volume samples.

    Attributes:
        dims: `(inline, crossline, sample)` or `(y, x)`.
        axes: Coordinate per axis.
        maps: Easting and northing `(inline, crossline)` of a volume, or None: a raster's are its axes.
        crs: Coordinate reference system of the map, or None.
        transform: Of a raster: affine `(a, b, c, d, e, f)` of cell corners.
    """

    dims: tuple[str, ...]
    axes: tuple[npt.NDArray[Any], ...]
    maps: tuple[Floats, Floats] | None
    crs: str | None
    transform: tuple[float, ...] | None = None

    @classmethod
    def of(cls, survey: xr.Dataset, where: str) -> Self:
        """The grid of a volume or a raster.

        Raises:
            MismatchError: the survey is neither.
        """
        info = survey_info(survey, where)
        dims = VOLUME_AXES if info.get("kind") == "volume" else RASTER_AXES
        if info.get("kind") not in ("volume", "raster"):
            raise MismatchError(
                "labels are painted on volumes and rasters", where=where, measured=f"kind {info.get('kind')}"
            )
        maps = None
        if dims == VOLUME_AXES and {"cdp_x", "cdp_y"} <= {*survey.variables}:
            x, y = (
                survey[name].transpose("inline", "crossline").values.astype(np.float64) for name in ("cdp_x", "cdp_y")
            )
            maps = (x, y)
        return cls(dims, tuple(survey[dim].values for dim in dims), maps, info.get("crs"), info.get("transform"))

    @property
    def shape(self) -> tuple[int, ...]:
        """Cells per axis."""
        return tuple(len(axis) for axis in self.axes)

    @property
    def samples(self) -> Floats | None:
        """Times or depths of a volume's samples."""
        return self.axes[2].astype(np.float64) if len(self.axes) == 3 else None

    def places(self, rows: slice, columns: slice) -> tuple[Floats, Floats]:
        """Easting and northing `(row, column)` of a part of the map.

        Raises:
            MismatchError: the survey has no map coordinates.
        """
        if self.dims == RASTER_AXES:
            y, x = np.meshgrid(self.axes[0][rows], self.axes[1][columns], indexing="ij")
            return x.astype(np.float64), y.astype(np.float64)
        x, y = self._maps()
        return x[rows, columns], y[rows, columns]

    def positions(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Rows and columns of points on the map, fractions and places outside included.

        In a volume by the affine grid that fits its bin coordinates best.

        Raises:
            MismatchError: the survey has no map coordinates, or is one line thick.
        """
        if self.dims == RASTER_AXES:
            return _along(self.axes[0], y), _along(self.axes[1], x)
        own_x, own_y = self._maps()
        i, j = np.nonzero(np.isfinite(own_x) & np.isfinite(own_y))
        known = np.column_stack([np.ones(i.size), i, j])
        fitted, _, rank, _ = np.linalg.lstsq(known, np.column_stack([own_x[i, j], own_y[i, j]]), rcond=None)
        if rank < 3:
            raise MismatchError(
                "map coordinates cannot be brought to lines",
                measured=f"a survey of {self.shape[0]} inlines and {self.shape[1]} crosslines",
                remedy="Give the interpretation by inline and crossline.",
            )
        rows, columns = np.linalg.solve(fitted[1:].T, (np.column_stack([x, y]) - fitted[0]).T)
        return rows, columns

    def _maps(self) -> tuple[Floats, Floats]:
        if self.maps is None:
            raise MismatchError(
                "the survey has no map coordinates",
                limit="cdp_x and cdp_y of each trace",
                remedy="Give the interpretation by inline and crossline.",
            )
        return self.maps


def _along(axis: npt.NDArray[Any], values: Floats) -> Floats:
    step = float(axis[-1] - axis[0]) / (len(axis) - 1) if len(axis) > 1 else 1.0
    return (values - float(axis[0])) / step
