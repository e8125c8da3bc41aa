"""Which points lie in a polygon, for many points and polygons of many corners."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Point = tuple[float, float]
BORDER = 1e-9
"""A trace so near to a polygon's edge, relative to the largest coordinate, lies on it: rounding of map coordinates."""


PAIRS_AT_ONCE = 2**20
"""Pairs of an edge and a point that are compared in one step, which bounds memory."""


def inside_polygon(x: Floats, y: Floats, corners: Floats) -> npt.NDArray[np.bool_]:
    """Which points lie in a polygon or on its border, by the even-odd rule; NaN lies outside.

    Points are sorted by y, so that an edge is compared with those of its own span alone: time grows with how often a
    line through the polygon crosses it, not with its number of corners.

    Args:
        x: Coordinates of any shape.
        y: Coordinates of the same shape.
        corners: `(corner, 2)`, in order around it.
    """
    margin = BORDER * float(np.abs(corners).max())
    low, high = corners.min(axis=0) - margin, corners.max(axis=0) + margin
    near = np.flatnonzero(((x >= low[0]) & (x <= high[0]) & (y >= low[1]) & (y <= high[1])).ravel())
    near = near[np.argsort(y.ravel()[near])]
    points = np.column_stack([x.ravel()[near], y.ravel()[near]])
    starts, ends = corners, np.roll(corners, -1, axis=0)
    first = np.searchsorted(points[:, 1], np.minimum(starts, ends)[:, 1] - margin)
    count = np.searchsorted(points[:, 1], np.maximum(starts, ends)[:, 1] + margin, side="right") - first
    crossings, border = np.zeros(near.size, np.int64), np.zeros(near.size, bool)
    for edges in _groups(count):
        edge = np.repeat(edges, count[edges])
        point = np.arange(edge.size) + np.repeat(first[edges] - np.cumsum(count[edges]) + count[edges], count[edges])
        right, on = _compare(points[point], starts[edge], ends[edge], margin)
        crossings += np.bincount(point[right], minlength=near.size)
        border[point[on]] = True
    found = np.zeros(x.size, bool)
    found[near] = (crossings % 2 == 1) | border
    return found.reshape(x.shape)


def _groups(count: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """Edges that have points in their span, in groups of about `PAIRS_AT_ONCE` pairs."""
    edges = np.flatnonzero(count)
    group = np.cumsum(count[edges]) // PAIRS_AT_ONCE
    return [part for part in np.split(edges, np.flatnonzero(np.diff(group)) + 1) if part.size]


def _compare(
    point: Floats, start: Floats, end: Floats, margin: float
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Pair by pair `(pair, 2)`: whether the edge passes to the right of the point, and whether it meets the point."""
    step, offset = end - start, point - start
    # The upper end of an edge is left to the next one, so that a ray through a corner counts it once.
    crossed = (start[:, 1] > point[:, 1]) != (end[:, 1] > point[:, 1])
    cross = offset[:, 0] * step[:, 1] - offset[:, 1] * step[:, 0]
    right = crossed & (np.where(step[:, 1] > 0, cross, -cross) < 0)
    squared = np.maximum((step**2).sum(axis=1), np.finfo(float).tiny)
    along = np.clip((offset * step).sum(axis=1) / squared, 0, 1)[:, None]
    return right, np.hypot(*(offset - along * step).T) <= margin
