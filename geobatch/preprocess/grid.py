"""What decides the cells of a survey before any other step: a part of it, or other sample intervals."""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr

from geobatch.errors import UsageError
from geobatch.preprocess.base import StepBase, axis_number


class Crop(StepBase):
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


def _range_cells(x: xr.DataArray, axis: str, ends: tuple[float, float]) -> slice:
    axis_number(x, axis, f"step crop, key {axis}")
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
