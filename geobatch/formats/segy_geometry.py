"""From inline and crossline numbers per trace to a regular grid, and from coordinates to an affine bin grid."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from geobatch.errors import GeometryError
from geobatch.formats.segy_file import SegyLayout
from geobatch.formats.segy_scan import TraceTable

# A real survey outline fills a third of its grid or more; header bytes that mean something else fill next to nothing.
MIN_FILL = 0.1
MIN_CHECKED_CELLS = 64
# Traces in another's place are damage up to here; beyond it the file is pre-stack or its header bytes are others.
MOST_DUPLICATES = 0.05
Duplicates = Literal["first", "last", "refuse"]
Numbers = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Lines:
    """Numbers in equal steps.

    Attributes:
        first: The first number.
        step: From one to the next.
        count: How many there are.
    """

    first: int
    step: int
    count: int

    @classmethod
    def of(cls, numbers: npt.NDArray[Any]) -> Lines:
        """The lines that reach every number by the largest step."""
        values = np.unique(numbers).astype(np.int64)
        step = int(np.gcd.reduce(np.diff(values))) if values.size > 1 else 1
        return cls(int(values[0]), step, int(values[-1] - values[0]) // step + 1)

    @property
    def last(self) -> int:
        """The last number."""
        return self.first + (self.count - 1) * self.step

    @property
    def values(self) -> Numbers:
        """Every number, int32."""
        return (self.first + self.step * np.arange(self.count, dtype=np.int64)).astype(np.int32)

    def index(self, numbers: Numbers) -> Numbers:
        """The position of each number, int32."""
        if self.step == 1 and abs(self.first) < 2**30 and abs(self.last) < 2**30:
            return numbers - np.int32(self.first)
        return ((numbers.astype(np.int64) - self.first) // self.step).astype(np.int32)


@dataclass(frozen=True)
class Spare:
    """Traces that stand where another one is kept.

    Attributes:
        kept: True for each trace of the file that is kept.
        left_out: Ordinals of the others.
        instead: Ordinal of the trace that is kept in place of each of them.
    """

    kept: npt.NDArray[np.bool_]
    left_out: npt.NDArray[np.int64]
    instead: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Grid:
    """Where each trace of a file stands.

    Attributes:
        inline: Inline numbers, int32, ascending in equal steps.
        crossline: Crossline numbers, int32, ascending in equal steps.
        inline_index: Position of each trace on the inline axis.
        crossline_index: Position of each trace on the crossline axis.
        spare: Traces that are left out, since another one stands in their place.
    """

    inline: Numbers
    crossline: Numbers
    inline_index: Numbers
    crossline_index: Numbers
    spare: Spare | None = field(default=None)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of inlines and crosslines."""
        return self.inline.size, self.crossline.size

    def place(self, values: npt.NDArray[Any], fill: float | int | bool) -> npt.NDArray[Any]:
        """A value per trace on the map `(inline, crossline)`, `fill` where there is no trace."""
        return place(self.shape, (self.inline_index, self.crossline_index), self.spare, values, fill)


def place(
    shape: tuple[int, ...],
    index: tuple[Numbers, ...],
    spare: Spare | None,
    values: npt.NDArray[Any],
    fill: float | int | bool,
) -> npt.NDArray[Any]:
    """A value per trace at its position in an array of `shape`, `fill` where there is no trace."""
    placed = np.full(shape, fill, dtype=values.dtype)
    if spare is not None:
        index, values = tuple(part[spare.kept] for part in index), values[spare.kept]
    placed[index] = values
    return placed


def make_grid(table: TraceTable, layout: SegyLayout, where: str, duplicates: Duplicates = "refuse") -> Grid:
    """The regular grid of a file's inline and crossline numbers.

    Args:
        table: The scanned file.
        layout: Where the numbers were read.
        where: The file, for messages.
        duplicates: Which of several traces on one position is kept, a live one before a dead one; up to 5 % of
            the traces may be left out. `refuse` allows none.

    Raises:
        GeometryError: the numbers do not vary, fill too little of their grid, or stand for several traces.
    """
    inline, crossline = Lines.of(table.inline), Lines.of(table.crossline)
    traces = table.inline.size
    if traces > 1 and inline.count == 1 and crossline.count == 1:
        raise GeometryError(
            "trace headers give no geometry: every trace has the same inline and crossline number",
            where=where,
            measured=f"inline {inline.first} in byte {layout.inline}, crossline {crossline.first} in byte"
            f" {layout.crossline}",
            remedy=_candidates(table),
        )
    cells = inline.count * crossline.count
    if too_sparse(traces, cells):
        raise GeometryError(
            "inline and crossline numbers make far too sparse a grid",
            where=where,
            measured=f"{traces} traces on {inline.count} x {crossline.count} positions ({traces / cells:.1e} of them"
            f" filled; inline {inline.first} to {inline.last}, crossline {crossline.first} to {crossline.last})",
            limit=f"at least {MIN_FILL:.0%} filled",
            remedy=_candidates(table),
        )
    inline_index, crossline_index = inline.index(table.inline), crossline.index(table.crossline)
    cell = inline_index.astype(np.int64) * crossline.count + crossline_index
    spare = _spare(cell, cells, table, duplicates, where)
    return Grid(inline.values, crossline.values, inline_index, crossline_index, spare)


def too_sparse(traces: int, cells: int) -> bool:
    """True when so few positions hold a trace that the numbers mean something else."""
    return cells > MIN_CHECKED_CELLS and traces < MIN_FILL * cells


def spare_traces(
    cell: npt.NDArray[np.int64], cells: int, live: npt.NDArray[np.bool_], duplicates: Duplicates
) -> Spare | None:
    """Which traces are left out where several stand on one position, or None when none do.

    Args:
        cell: Position of each trace.
        cells: Number of positions.
        live: True for the traces that are kept before others.
        duplicates: `first` or `last` of the live ones is kept.
    """
    shared = np.bincount(cell, minlength=cells)[cell] > 1
    if not shared.any():
        return None
    ordinals = np.flatnonzero(shared)
    order = np.lexsort((-ordinals if duplicates == "last" else ordinals, ~live[ordinals], cell[ordinals]))
    ranked = ordinals[order]
    leads = np.concatenate([[True], np.diff(cell[ranked]) != 0])
    leader = ranked[leads][np.cumsum(leads) - 1]
    left_out, instead = ranked[~leads], leader[~leads]
    kept = np.ones(cell.size, np.bool_)
    kept[left_out] = False
    order = np.argsort(left_out)
    return Spare(kept, left_out[order], instead[order])


def few(left_out: int, traces: int) -> bool:
    """True when so few traces stand in another's place that they are damage and not the way of the file."""
    return left_out <= max(1, int(MOST_DUPLICATES * traces))


def _spare(
    cell: npt.NDArray[np.int64], cells: int, table: TraceTable, duplicates: Duplicates, where: str
) -> Spare | None:
    spare = spare_traces(cell, cells, table.live, duplicates)
    if spare is None or (duplicates != "refuse" and few(spare.left_out.size, cell.size)):
        return spare
    counts = np.bincount(cell, minlength=cells)
    worst = int(counts.argmax())
    first = np.flatnonzero(cell == worst)[:3]
    many = f", of which {spare.left_out.size} had to be left out" if duplicates != "refuse" else ""
    raise GeometryError(
        "several traces share one inline and crossline number",
        where=where,
        measured=f"{int((counts > 1).sum())} positions with {int(counts[counts > 1].sum())} traces, such as inline"
        f" {table.inline[first[0]]}, crossline {table.crossline[first[0]]}: {counts[worst]} traces, ordinals"
        f" {', '.join(map(str, first))}{many}",
        limit="one trace per position (3-D post-stack)" if not many else f"at most {MOST_DUPLICATES:.0%} to leave out",
        remedy="Keep them with --set geometry=gathers or --set geometry=traces, or give other header bytes."
        f" {_candidates(table)}",
    )


def coordinates(
    table: TraceTable, x_byte: int | None = None, y_byte: int | None = None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Easting and northing of each trace in the file's unit: the scalar is applied, 0 counts as 1.

    Args:
        table: The scanned file.
        x_byte: Header position of another easting than that of the bin, one the table keeps.
        y_byte: Of another northing.
    """
    x, y = (table.x, table.y) if x_byte is None or y_byte is None else (table.word(x_byte), table.word(y_byte))
    scalar = table.scalar.astype(np.float64)
    multiplier = np.where(scalar > 0, scalar, 1.0)
    # Division rounds to the nearest double: 6058313 / 10 is 605831.3, times .1 is not.
    divisor = np.where(scalar < 0, -scalar, 1.0)
    return x * multiplier / divisor, y * multiplier / divisor


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


def _candidates(table: TraceTable) -> str:
    """The header positions whose 4-byte value varies, as the end of an error."""
    found = [f"{byte} ({low} to {high})" for byte, (low, high) in table.varying.items() if low != high]
    if not found:
        return "No 4-byte header position varies between traces: the file carries no geometry."
    return f"Header bytes that vary: {', '.join(found)}. Give two of them: --set inline_byte=… --set crossline_byte=…"
