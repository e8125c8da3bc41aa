"""Horizons and fault sticks on a survey's grid."""

from __future__ import annotations

import io
import itertools
import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from geobatch.errors import DataError, FormatError, UsageError
from geobatch.formats.arrays_npy import open_npy
from geobatch.formats.horizons import Horizon, Picks, read_horizon, read_table
from geobatch.formats.tables import refuse_long_lines
from geobatch.labels.grid import Floats, LabelGrid
from geobatch.labels.spec import HorizonFile, Surface
from geobatch.storage import open_storage, split_url

ON_BIN = 0.05
"""Picks so near to a bin's centre, in bins, belong to it: coordinates are rounded, and bins not quite square."""
SAMPLES_PER_CELL = 2
MARGIN = 64
"""Cells around the survey whose surroundings, the largest `radius` of fault sticks, reach into it."""
LONGEST_STICK = 2**17
LARGEST_SURFACE = 2**24
SURFACE_PIECE = 2**16
"""Samples of one stick, of the surface between two, and of what is held at a time."""
CHARISMA = re.compile(rb"INLINE-\s*\S+\s+XLINE-\s*\S+\s+(\S+)\s+(\S+)\s+(\S+)\s+(\S+)\s+(\d+)")


class Depths:
    """A surface on the map: a number, or a horizon.

    Args:
        surface: What the job says.
        grid: The survey's.
    """

    def __init__(self, surface: Surface, grid: LabelGrid) -> None:
        self._number: float | None = None
        if isinstance(surface, int | float):
            self._number = float(surface)
            return
        file = HorizonFile(url=surface) if isinstance(surface, str) else surface
        inline, crossline = (axis.astype(np.float64) for axis in grid.axes[:2])
        self._horizon = Horizon(_picks(file, grid), inline, crossline, file.url)

    def values(self, rows: slice, columns: slice) -> Floats:
        """Times or depths `(row, column)`, NaN where there is none."""
        if self._number is not None:
            return np.full((rows.stop - rows.start, columns.stop - columns.start), self._number)
        return self._horizon.values(rows)[:, columns]


def _picks(file: HorizonFile, grid: LabelGrid) -> Picks:
    """A horizon's picks by inline and crossline number, in the unit of the survey's axis."""
    if file.url.endswith(".npy"):
        picks = _array_picks(file)
    elif file.columns == "xyz":
        table = read_table(file.url, (3,), "lines of x y value")
        rows, columns = grid.positions(table[:, 0], table[:, 1])
        picks = Picks(_numbers(grid.axes[0], _on_bin(rows)), _numbers(grid.axes[1], _on_bin(columns)), table[:, 2])
    else:
        picks = read_horizon(file.url)
    samples = grid.samples
    if file.value == "index" and samples is not None:
        picks = Picks(picks.inline, picks.crossline, _numbers(samples, picks.value))
    return picks


def _array_picks(file: HorizonFile) -> Picks:
    source = open_npy(file.url)
    if len(source.shape) != 2 or file.inline is None or file.crossline is None:
        raise UsageError(
            "a horizon in an array has two axes, whose numbers are told",
            where=file.url,
            measured=f"shape {source.shape}, inline {file.inline}, crossline {file.crossline}",
            limit="inline: [first, step], crossline: [first, step]",
        )
    values = source.read(tuple(slice(0, n) for n in source.shape))
    i, j = np.nonzero(np.isfinite(values))
    if not i.size:
        raise DataError("horizon holds no pick", where=file.url)
    (inline, inline_step), (crossline, crossline_step) = file.inline, file.crossline
    return Picks(
        (inline + i * inline_step).astype(np.float64),
        (crossline + j * crossline_step).astype(np.float64),
        values[i, j].astype(np.float64),
    )


def _on_bin(places: Floats) -> Floats:
    nearest = np.rint(places)
    return np.where(np.abs(places - nearest) < ON_BIN, nearest, places)


def _numbers(axis: npt.NDArray[np.number], places: Floats) -> Floats:
    """Numbers of an axis at positions, fractions and places outside included."""
    step = float(axis[-1] - axis[0]) / (len(axis) - 1) if len(axis) > 1 else 1.0
    return float(axis[0]) + places * step


def fault_cells(url: str, grid: LabelGrid) -> npt.NDArray[np.int32]:
    """Cells `(cell, 3)` that fault surfaces go through: between neighbouring sticks, straight from one to the other.

    Sticks of a fault are taken in the order of their numbers, each as a line through its points in the order of depth;
    points of two sticks correspond by their share of the length. A fault of one stick is that line.

    Raises:
        FormatError: a line of the file does not read.
        DataError: no stick touches the survey, or a fault is larger than one can be.
    """
    samples = grid.samples
    if samples is None:
        raise UsageError("fault sticks are painted on volumes", where=url, measured="a raster")
    found: list[npt.NDArray[np.int64]] = []
    every: list[Floats] = []
    step = float(samples[-1] - samples[0]) / max(len(samples) - 1, 1) or 1.0
    for fault, sticks in _read_sticks(url).items():
        lines = []
        for _, points in sorted(sticks.items()):
            x, y, z = np.array(sorted(points, key=lambda point: point[2]), np.float64).T
            lines.append(np.column_stack([*grid.positions(x, y), (z - samples[0]) / step]))
        pairs = itertools.pairwise(lines) if len(lines) > 1 else [(lines[0], lines[0])]
        for one, other in pairs:
            found = _merged(found, _between(one, other, grid.shape, f"{url}, fault {fault!r}"))
        every += lines
    padded = [n + 2 * MARGIN for n in grid.shape]
    cells = np.column_stack(np.unravel_index(np.unique(np.concatenate(found)), padded)).astype(np.int32) - MARGIN
    if not ((cells >= 0) & (cells < grid.shape)).all(axis=1).any():
        corners = np.rint(np.concatenate(every))
        raise DataError(
            "fault sticks lie off the survey",
            where=url,
            measured=f"points in cells {corners.min(axis=0).tolist()} to {corners.max(axis=0).tolist()}",
            limit=f"0 to {[n - 1 for n in grid.shape]}",
            remedy="Check coordinates and the vertical unit.",
        )
    # Cells outside are kept: their surroundings may be inside.
    return cells


def _between(one: Floats, other: Floats, shape: Sequence[int], where: str) -> npt.NDArray[np.int64]:
    """Cells on the ruled surface between two lines of points `(point, 3)` in cells, on the survey or near it.

    They are numbers in C order on the grid with MARGIN cells more on every side.
    """
    apart = np.maximum(one.max(axis=0) - other.min(axis=0), other.max(axis=0) - one.min(axis=0)).max()
    span = max(apart, np.abs(np.diff(one, axis=0)).sum(axis=0).max(initial=0.0), 1.0)
    rows = SAMPLES_PER_CELL * span + 2
    # Written so that NaN, the difference of two infinities, is too long.
    if not rows <= LONGEST_STICK:
        raise _too_large(where, f"a stick or a gap of {span:.4g} cells", LONGEST_STICK // SAMPLES_PER_CELL)
    share = np.linspace(0, 1, int(np.ceil(SAMPLES_PER_CELL * span)) + 1)
    first, second = _along_line(one, share), _along_line(other, share)
    count = int(np.ceil(SAMPLES_PER_CELL * np.abs(first - second).max()))
    begin, end = _near(first, second, shape, count)
    shares, reach = np.linspace(0, 1, count + 1), np.cumsum(end - begin)
    if reach[-1] > LARGEST_SURFACE:
        raise _too_large(where, f"{reach[-1] // SAMPLES_PER_CELL**2} cells", LARGEST_SURFACE // SAMPLES_PER_CELL**2)
    found: list[npt.NDArray[np.int64]] = []
    padded = [n + 2 * MARGIN for n in shape]
    edges = np.searchsorted(reach, np.arange(SURFACE_PIECE, reach[-1] + SURFACE_PIECE, SURFACE_PIECE)) + 1
    for start, stop in itertools.pairwise([0, *np.unique(edges.clip(max=share.size)).tolist()]):
        lengths = (end - begin)[start:stop]
        row = np.repeat(np.arange(start, stop), lengths)
        across = np.arange(row.size) - np.repeat(np.cumsum(lengths) - lengths - begin[start:stop], lengths)
        along = shares[across, None]
        cells = np.rint(first[row] * (1 - along) + second[row] * along) + MARGIN
        near = cells[((cells >= 0) & (cells < padded)).all(axis=1)].astype(np.int64)
        found = _merged(found, np.unique(np.ravel_multi_index(tuple(near.T), padded)))
    return np.unique(np.concatenate([np.empty(0, np.int64), *found]))


def _merged(found: list[npt.NDArray[np.int64]], more: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """The arrays of cells and one more; brought together now and then, so that what they share is held once."""
    found = [*found, more]
    if sum(map(len, found[1:])) > max(len(found[0]), SURFACE_PIECE):
        found = [np.unique(np.concatenate(found))]
    return found


def _near(first: Floats, second: Floats, shape: Sequence[int], count: int) -> tuple[npt.NDArray[np.int64], ...]:
    """The first sample and the last + 1 of each straight line `(line, 3)` that can lie on the survey or near it.

    Lines have samples 0 to `count`; they are clipped to a box (Liang & Barsky 1984), with a sample to spare.
    """
    low, high = np.full(3, -MARGIN - 1.0), np.array(shape) + float(MARGIN)
    with np.errstate(divide="ignore", invalid="ignore"):
        crossings = np.sort([(low - first) / (second - first), (high - first) / (second - first)], axis=0)
    # A line along a face of the box is inside of it everywhere, or nowhere.
    level = first == second
    inside = np.where((first >= low) & (first <= high), -np.inf, np.inf)
    enter = np.where(level, inside, crossings[0]).max(axis=1).clip(0, 1)
    leave = np.where(level, -inside, crossings[1]).min(axis=1).clip(0, 1)
    begin = np.maximum(np.floor(enter * count).astype(np.int64) - 1, 0)
    end = np.minimum(np.ceil(leave * count).astype(np.int64) + 2, count + 1)
    return begin, np.maximum(end, begin)


def _too_large(where: str, measured: str, limit: int) -> DataError:
    return DataError(
        "fault is too large to be one",
        where=where,
        measured=measured,
        limit=f"{limit} cells",
        remedy="Look for points far off the survey, and check the numbers of the sticks.",
    )


def _along_line(points: Floats, share: Floats) -> Floats:
    """Points at shares of a line's length."""
    if len(points) == 1:
        return np.repeat(points, share.size, axis=0)
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    where = share * length[-1]
    return np.column_stack([np.interp(where, length, values) for values in points.T])


def _read_sticks(url: str) -> dict[str, dict[int, list[Sequence[float]]]]:
    """Points by fault and number of the stick."""
    root, name = split_url(url)
    found: dict[str, dict[int, list[Sequence[float]]]] = defaultdict(lambda: defaultdict(list))
    body = open_storage(root).get(name)
    refuse_long_lines(body, url)
    for number, line in enumerate(io.BytesIO(body), 1):
        text = line.partition(b"#")[0].strip()
        if not text:
            continue
        try:
            charisma = CHARISMA.match(text)
            if charisma:
                x, y, z, fault, stick = charisma.groups()
            else:
                x, y, z, stick, *rest = text.replace(b",", b" ").split()
                fault = b" ".join(rest)
            point = (float(x), float(y), float(z))
            if not np.isfinite(point).all():
                raise ValueError("a coordinate is no finite number")
            found[fault.decode("latin-1")][int(float(stick))].append(point)
        except (ValueError, OverflowError) as error:
            raise FormatError(
                "no fault sticks",
                where=f"{url}, line {number}",
                measured=text[:80].decode("latin-1"),
                limit="x y z stick [fault], or INLINE- n XLINE- n x y z fault stick",
            ) from error
    if not found:
        raise DataError("file holds no fault stick", where=url)
    return found
