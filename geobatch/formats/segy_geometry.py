"""From inline and crossline numbers per trace to a regular grid, and from coordinates to an affine bin grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geobatch.errors import GeometryError
from geobatch.formats.segy import SegyLayout
from geobatch.formats.segy_scan import TraceTable

# A real survey outline fills a third of its grid or more; header bytes that mean something else fill next to nothing.
MIN_FILL = 0.1
MIN_CHECKED_CELLS = 64


@dataclass(frozen=True)
class Grid:
    """Where each trace of a file stands.

    Attributes:
        inline: Inline numbers, int32, ascending in equal steps.
        crossline: Crossline numbers, int32, ascending in equal steps.
        inline_index: Position of each trace on the inline axis.
        crossline_index: Position of each trace on the crossline axis.
    """

    inline: npt.NDArray[np.int32]
    crossline: npt.NDArray[np.int32]
    inline_index: npt.NDArray[np.int32]
    crossline_index: npt.NDArray[np.int32]

    @property
    def shape(self) -> tuple[int, int]:
        """Number of inlines and crosslines."""
        return self.inline.size, self.crossline.size

    def place(self, values: npt.NDArray[Any], fill: float | int | bool) -> npt.NDArray[Any]:
        """A value per trace on the map `(inline, crossline)`, `fill` where there is no trace."""
        placed = np.full(self.shape, fill, dtype=values.dtype)
        placed[self.inline_index, self.crossline_index] = values
        return placed


def make_grid(table: TraceTable, layout: SegyLayout, where: str) -> Grid:
    """The regular grid of a file's inline and crossline numbers.

    Raises:
        GeometryError: the numbers do not vary, fill too little of their grid, or stand for several traces.
    """
    inline_values, crossline_values = np.unique(table.inline), np.unique(table.crossline)
    traces = table.inline.size
    if traces > 1 and inline_values.size == 1 and crossline_values.size == 1:
        raise GeometryError(
            "trace headers give no geometry: every trace has the same inline and crossline number",
            where=where,
            measured=f"inline {inline_values[0]} in byte {layout.inline},"
            f" crossline {crossline_values[0]} in byte {layout.crossline}",
            remedy=_candidates(table),
        )
    steps = [_step(values) for values in (inline_values, crossline_values)]
    sizes = [
        int(values[-1].astype(np.int64) - values[0]) // step + 1
        for values, step in zip((inline_values, crossline_values), steps, strict=True)
    ]
    cells = math.prod(sizes)
    if cells > MIN_CHECKED_CELLS and traces < MIN_FILL * cells:
        raise GeometryError(
            "inline and crossline numbers make far too sparse a grid",
            where=where,
            measured=f"{traces} traces on {sizes[0]} x {sizes[1]} positions ({traces / cells:.1e} of them filled;"
            f" inline {inline_values[0]} to {inline_values[-1]}, crossline {crossline_values[0]} to"
            f" {crossline_values[-1]})",
            limit=f"at least {MIN_FILL:.0%} filled",
            remedy=_candidates(table),
        )
    grid = Grid(
        inline=np.arange(sizes[0], dtype=np.int32) * np.int32(steps[0]) + inline_values[0],
        crossline=np.arange(sizes[1], dtype=np.int32) * np.int32(steps[1]) + crossline_values[0],
        inline_index=((table.inline - inline_values[0]) // steps[0]).astype(np.int32),
        crossline_index=((table.crossline - crossline_values[0]) // steps[1]).astype(np.int32),
    )
    _refuse_duplicates(grid, table, where)
    return grid


def coordinates(table: TraceTable) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Easting and northing of each trace in the file's unit: the scalar is applied, 0 counts as 1."""
    scalar = table.scalar.astype(np.float64)
    multiplier = np.where(scalar > 0, scalar, 1.0)
    # Division rounds to the nearest double: 6058313 / 10 is 605831.3, times .1 is not.
    divisor = np.where(scalar < 0, -scalar, 1.0)
    return table.x * multiplier / divisor, table.y * multiplier / divisor


def fit_bin_grid(grid: Grid, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> dict[str, Any] | None:
    """The affine map from grid indices to coordinates, by least squares over all traces, or None.

    `x = x0 + ax * inline_index + bx * crossline_index`, likewise y. An axis one line thick has coefficients 0 and no
    spacing. `azimuth_deg` is the direction in which crossline numbers grow along an inline, clockwise from north.
    None when the coordinates do not vary.
    """
    if np.ptp(x) == 0 and np.ptp(y) == 0:
        return None
    indices = np.stack([grid.inline_index, grid.crossline_index]).astype(np.float64)
    places = np.stack([x, y])
    mean_index, mean_place = indices.mean(axis=1), places.mean(axis=1)
    indices -= mean_index[:, None]
    places -= mean_place[:, None]
    # The pseudo-inverse gives an axis one line thick the coefficient 0.
    steps = np.linalg.pinv(indices @ indices.T, hermitian=True) @ (indices @ places.T)
    start = mean_place - mean_index @ steps
    residual = places - steps.T @ indices
    inline_step, crossline_step = steps
    return {
        "affine": [float(v) for k in (0, 1) for v in (start[k], inline_step[k], crossline_step[k])],
        "rms_residual_m": float(np.sqrt((residual**2).sum(axis=0).mean())),
        "inline_spacing_m": _length(inline_step),
        "crossline_spacing_m": _length(crossline_step),
        "azimuth_deg": math.degrees(math.atan2(*crossline_step)) % 360 if crossline_step.any() else None,
    }


def _length(step: npt.NDArray[np.float64]) -> float | None:
    return float(np.hypot(*step)) or None


def _step(values: npt.NDArray[np.int32]) -> int:
    """The largest step that reaches every number."""
    return int(np.gcd.reduce(np.diff(values.astype(np.int64)))) if values.size > 1 else 1


def _refuse_duplicates(grid: Grid, table: TraceTable, where: str) -> None:
    cell = grid.inline_index.astype(np.int64) * grid.shape[1] + grid.crossline_index
    counts = np.bincount(cell, minlength=math.prod(grid.shape))
    repeated = int((counts > 1).sum())
    if not repeated:
        return
    worst = int(counts.argmax())
    first = np.flatnonzero(cell == worst)[:3]
    raise GeometryError(
        "several traces share one inline and crossline number",
        where=where,
        measured=f"{repeated} positions with {int(counts[counts > 1].sum())} traces, such as inline"
        f" {table.inline[first[0]]}, crossline {table.crossline[first[0]]}: {counts[worst]} traces, ordinals"
        f" {', '.join(map(str, first))}",
        limit="one trace per position (3-D post-stack)",
        remedy=f"Stack pre-stack gathers first, or give other header bytes. {_candidates(table)}",
    )


def _candidates(table: TraceTable) -> str:
    """The header positions whose 4-byte value varies, as the end of an error."""
    found = [f"{byte} ({low} to {high})" for byte, (low, high) in table.varying.items() if low != high]
    if not found:
        return "No 4-byte header position varies between traces: the file carries no geometry."
    return f"Header bytes that vary: {', '.join(found)}. Give two of them: --set inline_byte=… --set crossline_byte=…"
