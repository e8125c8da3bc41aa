"""A small grid for labels, and painting on it."""

from __future__ import annotations

from typing import Any

import numpy as np

from geobatch.labels.grid import LabelGrid
from geobatch.labels.layers import make_painter


def _grid() -> LabelGrid:
    i, j = np.meshgrid(np.arange(18.0), np.arange(14.0), indexing="ij")
    lines = np.arange(100, 118), np.arange(300, 314), np.arange(40) * 4.0
    return LabelGrid(("inline", "crossline", "sample"), lines, (25 * i + 5 * j, 12 * j - 3 * i), "EPSG:32631")


# (inline, crossline, sample): inlines 100 to 117, crosslines 300 to 313, 0 to 156 ms, cells of about 25 by 13 m.
GRID = _grid()


def painted(layer: Any) -> np.ndarray:
    """The class map that a layer gives on the grid: 0 where it says its class, 255 elsewhere."""
    class_map = np.full(GRID.shape, 255, np.uint8)
    make_painter(layer, GRID, {"a": 0}).paint(tuple(slice(0, n) for n in GRID.shape), class_map)
    return class_map
