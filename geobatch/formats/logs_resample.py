"""A well's curves on the survey's depth axis: kept, interpolated, or averaged before they are thinned."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from geobatch.formats.logs_well import Floats, native_grid

# Steps that differ by less than this part of a step over the whole well are the same step.
DRIFT = 0.25


@dataclass(frozen=True)
class DepthAxis:
    """The common depth axis.

    Attributes:
        start_m: First depth.
        step_m: Step.
        count: Number of depths.
    """

    start_m: float
    step_m: float
    count: int

    @property
    def values(self) -> Floats:
        """Depth in metres, float64."""
        return np.asarray(self.start_m + self.step_m * np.arange(self.count), np.float64)


def kept_places(depth: Floats, step_m: float, axis: DepthAxis) -> tuple[npt.NDArray[np.int64], float] | None:
    """Cell of each native depth and the shift of the well against the axis in metres; None when steps differ.

    A native sample stays what it is: its true depth is that of its cell plus the shift, at most half a step.
    """
    grid = native_grid(depth, step_m) if math.isfinite(step_m) else None
    if grid is None:
        if depth.size == 1:
            grid = (axis.step_m, np.zeros(1, np.int64))
        else:
            return None
    step, places = grid
    if abs(step - axis.step_m) * places[-1] > DRIFT * axis.step_m:
        return None
    first = round((depth[0] - axis.start_m) / axis.step_m)
    shift = float(depth[0] - (axis.start_m + first * axis.step_m))
    # Axes that agree to a printed digit agree.
    return places + first, 0.0 if abs(shift) < 1e-6 * axis.step_m else shift


def resample(depth: Floats, values: Floats, axis: DepthAxis, max_gap_m: float | None) -> Floats:
    """One curve on the axis, float64, NaN where the well has no value within reach.

    Linear between neighbours where the axis is as fine as the well; where it is coarser, means of the values within one
    step under a Hann window, which is zero at the frequencies that would fold onto zero.

    Args:
        depth: Native depths in metres, increasing.
        values: Native values, NaN where there is none.
        axis: The common axis.
        max_gap_m: Never interpolate between values further apart; 1.5 native steps when None.
    """
    finite = np.isfinite(values)
    at, known = depth[finite], values[finite]
    out = np.full(axis.count, np.nan)
    if not at.size:
        return out
    native = float(np.median(np.diff(depth))) if depth.size > 1 else axis.step_m
    gap = 1.5 * native if max_gap_m is None else max_gap_m
    if axis.step_m > 1.01 * native:
        return _averaged(at, known, axis, max(gap, axis.step_m))
    targets = axis.values
    right = np.searchsorted(at, targets, side="left")
    exact = (right < at.size) & (at[np.minimum(right, at.size - 1)] == targets)
    inside = (right > 0) & (right < at.size)
    spans = np.full(axis.count, np.inf)
    spans[inside] = at[right[inside]] - at[right[inside] - 1]
    reachable = exact | (inside & (spans <= gap))
    out[reachable] = np.interp(targets[reachable], at, known)
    return out


def nearest(depth: Floats, values: Floats, axis: DepthAxis) -> Floats:
    """One curve of codes on the axis: the nearest native one within half a step of the coarser of the two, else NaN."""
    native = float(np.median(np.diff(depth))) if depth.size > 1 else axis.step_m
    targets = axis.values
    right = np.clip(np.searchsorted(depth, targets), 1, max(depth.size - 1, 1))
    left = right - 1
    right = np.minimum(right, depth.size - 1)
    chosen = np.where(targets - depth[left] <= depth[right] - targets, left, right)
    near = np.abs(depth[chosen] - targets) <= 0.5 * max(native, axis.step_m) * (1 + 1e-9)
    return np.where(near, values[chosen], np.nan)


def _averaged(at: Floats, known: Floats, axis: DepthAxis, gap: float) -> Floats:
    """Means within one step on either side, each value weighted by a Hann window and by the length it stands for."""
    length = np.gradient(at) if at.size > 1 else np.ones(1)
    length = np.minimum(length, gap)
    position = (at - axis.start_m) / axis.step_m
    below = np.floor(position).astype(np.int64)
    total, weight = np.zeros(axis.count), np.zeros(axis.count)
    closest = np.full(axis.count, np.inf)
    for offset in (0, 1):
        cell = below + offset
        inside = (cell >= 0) & (cell < axis.count)
        distance = np.abs(position - cell)
        w = np.where(inside, 0.5 * (1 + np.cos(np.pi * distance)) * length, 0.0)
        place = np.where(inside, cell, 0)
        total += np.bincount(place, w * known, minlength=axis.count)
        weight += np.bincount(place, w, minlength=axis.count)
        np.minimum.at(closest, place[inside], distance[inside])
    valid = (weight > 0) & (closest * axis.step_m <= 0.5 * gap * (1 + 1e-9))
    return np.where(valid, total / np.where(weight > 0, weight, 1.0), np.nan)
