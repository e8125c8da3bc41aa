"""Horizons: picked times or depths per trace, read from the ASCII form in which interpretation systems exchange them.

    # inline crossline value                 ! or with coordinates: inline crossline x y value
    2041 1180 1532.5
    2041 1181 1534.0

Columns stand apart by blanks or commas; `#` and `!` begin a comment. NaN and the customary null 1e30 are no picks.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from geobatch.errors import DataError, FormatError, UsageError
from geobatch.formats.tables import refuse_long_lines
from geobatch.storage import open_storage, split_url

Floats = npt.NDArray[np.float64]
NULL = 1e29
"""Values from here on are no picks."""
_ON_GRID = 1e-6


@dataclass(frozen=True)
class Picks:
    """The picks of one horizon.

    Attributes:
        inline: `(pick)` inline numbers.
        crossline: `(pick)` crossline numbers.
        value: `(pick)` two-way time in ms or depth in m, finite.
    """

    inline: Floats
    crossline: Floats
    value: Floats


def read_horizon(url: str) -> Picks:
    """The picks of the horizon file at `url`.

    Raises:
        NotFoundError: nothing is there.
        FormatError: a line holds something else than 3 or 5 numbers.
        DataError: it holds no pick.
    """
    table = read_table(url, (3, 5), "lines of inline crossline value, or of inline crossline x y value")
    return Picks(table[:, 0], table[:, 1], table[:, -1])


def read_table(url: str, columns: Sequence[int], lines: str) -> Floats:
    """The picks `(pick, column)` of a text file, the value last, without those that are none.

    Args:
        url: Of the file.
        columns: How many there may be.
        lines: What the file should hold, for messages.

    Raises:
        NotFoundError: nothing is there.
        FormatError: a line holds something else than numbers, or another count of them.
        DataError: it holds no pick.
    """
    root, name = split_url(url)
    text = open_storage(root).get(name)
    refuse_long_lines(text, url)
    text = text.replace(b",", b" ")
    try:
        with warnings.catch_warnings():
            # A file of comments alone is refused below, by its count of picks.
            warnings.filterwarnings("ignore", message=".*contained no data")
            table = np.loadtxt(io.BytesIO(text), comments=["#", "!"], ndmin=2) if text.strip() else np.empty((0, 3))
    except ValueError as error:
        raise FormatError("no horizon file", where=url, measured=str(error).partition(";")[0], limit=lines) from error
    if len(table) and table.shape[1] not in columns:
        raise FormatError("no horizon file", where=url, measured=f"{table.shape[1]} columns", limit=lines)
    picked = table[np.isfinite(table).all(axis=1) & (np.abs(table[:, -1]) < NULL)] if len(table) else table
    if not len(picked):
        raise DataError("horizon file holds no pick", where=url, measured=f"{len(table)} lines", limit=lines)
    return np.asarray(picked, np.float64)


class Horizon:
    """A horizon on the traces of a survey: its picks, and between them linear interpolation.

    The surface goes through triangles of picks in the plane of inline and crossline positions. Traces outside the
    hull of the picks have none.

    Args:
        picks: Its picks; of several on one trace the last counts.
        inline: Inline numbers of the survey, in equal steps.
        crossline: Crossline numbers of the survey, in equal steps.
        where: The file, for messages.

    Raises:
        UsageError: it lies wholly off the survey.
        DataError: its picks cannot be made a surface of.
    """

    def __init__(self, picks: Picks, inline: Floats, crossline: Floats, where: str) -> None:
        position = np.column_stack([_positions(picks.inline, inline), _positions(picks.crossline, crossline)])
        with np.errstate(invalid="ignore"):
            # Numbers beyond every integer become the least, which is on no survey.
            nearest = np.rint(position).astype(np.int64)
        on_trace = (np.abs(position - nearest) < _ON_GRID).all(axis=1)
        on_trace &= ((nearest >= 0) & (nearest < (inline.size, crossline.size))).all(axis=1)
        self._where = where
        self._picked = np.full((inline.size, crossline.size), np.nan)
        self._picked[tuple(nearest[on_trace].T)] = picks.value[on_trace]
        # Only picks beside a trace without one, or off the traces, are triangulated: the triangles at the others are
        # halves of grid cells and hold no such trace. A horizon picked everywhere but in gaps stays cheap.
        support = np.logical_not(on_trace)
        support[on_trace] = _neighbourhood(np.isnan(self._picked))[tuple(nearest[on_trace].T)]
        self._points, self._values = position[support], picks.value[support]
        if np.isnan(self._picked).all() and np.isnan(self.values(slice(0, inline.size))).all():
            raise UsageError(
                "horizon lies off the survey",
                where=where,
                measured=f"inlines {_range(picks.inline)}, crosslines {_range(picks.crossline)}",
                limit=f"inlines {_range(inline)}, crosslines {_range(crossline)}",
                remedy="Check that the horizon and the survey are numbered alike.",
            )

    def values(self, inlines: slice, needed: npt.NDArray[np.bool_] | None = None) -> Floats:
        """Times or depths `(inline, crossline)` on the traces of some inlines, NaN where there is none.

        Args:
            inlines: Positions of the inlines.
            needed: `(inline, crossline)`, the traces between whose picks it is worth interpolating; all by default.
        """
        values = self._picked[inlines].copy()
        missing = np.isnan(values) if needed is None else np.isnan(values) & needed
        if missing.any() and len(self._points):
            i, x = np.nonzero(missing)
            values[i, x] = self._interpolate(np.column_stack([i + inlines.start, x]))
        return values

    @cached_property
    def _interpolate(self) -> Callable[[npt.NDArray[np.int64]], Floats]:
        """Values at trace positions `(trace, 2)`."""
        origin = self._points[0]
        offsets = self._points - origin
        furthest = offsets[np.argmax(np.hypot(*offsets.T))]
        length = float(np.hypot(*furthest))
        direction = furthest / length if length else np.array([1.0, 0.0])
        if (np.abs(_aside(offsets, direction)) < _ON_GRID).all():
            return _along_line(origin, direction, offsets @ direction, self._values)
        from scipy.interpolate import LinearNDInterpolator
        from scipy.spatial import QhullError

        try:
            triangles = LinearNDInterpolator(self._points, self._values)
        except QhullError as error:
            raise DataError(
                "picks make no triangles",
                where=self._where,
                measured=f"{len(self._points)} picks over {length:.4g} traces, all but on one line",
                remedy="Take out picks that lie far off the survey.",
            ) from error
        return lambda traces: np.asarray(triangles(traces), np.float64)


def _along_line(origin: Floats, direction: Floats, along: Floats, value: Floats) -> Callable[..., Floats]:
    """Interpolation between picks that lie on one line, for traces on that line."""
    order = np.argsort(along)

    def interpolate(traces: npt.NDArray[np.int64]) -> Floats:
        offsets = traces - origin
        found = np.interp(offsets @ direction, along[order], value[order], left=np.nan, right=np.nan)
        return np.where(np.abs(_aside(offsets, direction)) < _ON_GRID, found, np.nan)

    return interpolate


def _aside(offsets: Floats, direction: Floats) -> Floats:
    """Distance of points `(point, 2)` from the line through the origin along a unit vector, with its sign."""
    distance: Floats = offsets[:, 0] * direction[1] - offsets[:, 1] * direction[0]
    return distance


def _positions(numbers: Floats, axis: Floats) -> Floats:
    """Line numbers as positions on an axis of equal steps, fractions and places outside included."""
    step = float(axis[-1] - axis[0]) / (axis.size - 1) if axis.size > 1 else 1.0
    return (numbers - float(axis[0])) / step


def _neighbourhood(marked: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Traces that are marked or have a marked one among their eight neighbours."""
    near: npt.NDArray[np.bool_] = marked.copy()
    near[1:] |= marked[:-1]
    near[:-1] |= marked[1:]
    found: npt.NDArray[np.bool_] = near.copy()
    found[:, 1:] |= near[:, :-1]
    found[:, :-1] |= near[:, 1:]
    return found


def _range(numbers: Floats) -> str:
    return f"{numbers.min():g} to {numbers.max():g}"
