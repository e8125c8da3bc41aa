"""Which points lie in a polygon, for many points and polygons of many corners."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Point = tuple[float, float]
BORDER = 1e-9
"""A trace so near to a polygon's edge, relative to the largest coordinate, lies on it: rounding of map coordinates."""


def inside_polygon(x: Floats, y: Floats, corners: Floats) -> npt.NDArray[np.bool_]:
    """Which points lie in a polygon or on its border, by the even-odd rule; NaN lies outside.

    Points are sorted by y, so that an edge is compared with those of its own span alone: the time grows with the
    polygon's outline, not with its number of corners.

    Args:
        x: Coordinates of any shape.
        y: Coordinates of the same shape.
        corners: `(corner, 2)`, in order around it.
    """
    margin = BORDER * float(np.abs(corners).max())
    low, high = corners.min(axis=0) - margin, corners.max(axis=0) + margin
    near = np.flatnonzero(((x >= low[0]) & (x <= high[0]) & (y >= low[1]) & (y <= high[1])).ravel())
    near = near[np.argsort(y.ravel()[near])]
    px, py = x.ravel()[near], y.ravel()[near]
    odd, border = np.zeros(near.size, bool), np.zeros(near.size, bool)
    for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        bottom, top = sorted((y1, y2))
        span = slice(*np.searchsorted(py, (bottom, top)))
        if bottom < top:
            odd[span] ^= px[span] < x1 + (py[span] - y1) * ((x2 - x1) / (y2 - y1))
        reach = slice(np.searchsorted(py, bottom - margin), np.searchsorted(py, top + margin, side="right"))
        border[reach] |= _distance(px[reach], py[reach], (x1, y1), (x2, y2)) <= margin
    found = np.zeros(x.size, bool)
    found[near] = odd | border
    return found.reshape(x.shape)


def _distance(x: Floats, y: Floats, start: Point, end: Point) -> Floats:
    """Distance of points from the segment between two others."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    squared = dx * dx + dy * dy
    along = np.clip(((x - start[0]) * dx + (y - start[1]) * dy) / squared, 0, 1) if squared else np.zeros(x.shape)
    distance: Floats = np.hypot(x - start[0] - along * dx, y - start[1] - along * dy)
    return distance
