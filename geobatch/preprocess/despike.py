"""The step that finds spikes and takes them away."""

from __future__ import annotations

from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import xarray as xr
from pydantic import Field

from geobatch.preprocess.base import Float64Array, Mask, axis_number, dask_data
from geobatch.preprocess.lines import each_line
from geobatch.preprocess.overlap import map_along_axis
from geobatch.preprocess.windows import WindowedStep

SIGMA_PER_MAD = 1.4826
"""Standard deviation of normal values over their median absolute deviation."""


class Despike(WindowedStep):
    """Replaces spikes: samples further than `threshold` standard deviations from the median around them.

    The Hampel identifier (Davies & Gather 1993): median and median absolute deviation (MAD) are those of the valid
    samples in a window centred on the sample and cut off at the ends of the line; 1.4826 MAD stand for the standard
    deviation. Where more than half of the window is of one value, the MAD is 0 and every other value a spike.

    Attributes:
        threshold: In standard deviations.
        replace: By the `median`, or `mask` the spikes as invalid.
    """

    step: Literal["despike"] = "despike"
    threshold: float = Field(default=5.0, gt=0)
    replace: Literal["median", "mask"] = "median"

    def apply(self, x: xr.DataArray) -> xr.DataArray:
        """`x` without its spikes; invalid samples stay invalid."""
        data = dask_data(x, f"the step {self.step}")
        axis, half = axis_number(x, self.along, f"step {self.step}, key along"), self.checked_half(x)
        calm = partial(without_spikes, half=half, threshold=self.threshold, mask=self.replace == "mask")
        function = partial(each_line, function=calm, axis=axis, gaps="zero", bytes_per_sample=16 * (2 * half + 1))
        return x.copy(deep=False, data=map_along_axis(function, data, axis, half, half))


def without_spikes(lines: Float64Array, valid: Mask, half: int, threshold: float, mask: bool = False) -> Float64Array:
    """Lines `(line, sample)` with every spike replaced by the median around it, or by NaN with `mask`."""
    padded = np.full((len(lines), lines.shape[1] + 2 * half), np.nan)
    padded[:, half : half + lines.shape[1]] = np.where(valid, lines, np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1, axis=1)
    count = np.isfinite(windows).sum(axis=2)
    median = _median(windows, count)
    spread = SIGMA_PER_MAD * _median(np.abs(windows - median[..., None]), count)
    spikes = np.abs(lines - median) > threshold * spread
    return np.where(spikes, np.nan if mask else median, lines)


def _median(windows: Float64Array, count: npt.NDArray[np.int64]) -> Float64Array:
    """The median of the `count` numbers of each window; NaN where there is none."""
    # NaN is sorted to the end.
    ordered = np.sort(windows, axis=2)
    low, high = np.maximum(count - 1, 0) // 2, np.minimum(count // 2, windows.shape[2] - 1)
    pick = [np.take_along_axis(ordered, place[..., None], axis=2)[..., 0] for place in (low, high)]
    return 0.5 * (pick[0] + pick[1])
