"""One well as its file tells it: identity, a depth axis in metres that increases, and its curves."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from geobatch.errors import FormatError
from geobatch.formats.ingestion import Fault

Floats = npt.NDArray[np.float64]
# The deepest borehole is 12.3 km long; longer ones are slips of units or of the decimal point.
DEPTH_LIMIT_M = 20_000.0
# Rows of one file that are told one by one; the others as a sum, so that no quality table outgrows its data.
FAULT_LIMIT = 200
# Depths are printed with few decimals: so far from a regular step, as part of it, they still count as regular.
ROUNDING = 0.1


@dataclass(frozen=True)
class Track:
    """One curve of a well as the file names it.

    Attributes:
        name: Its mnemonic.
        unit: Its unit, spelled as in `logs_curves`; empty when the file gives none.
        values: One per depth, float64, NaN where there is none.
    """

    name: str
    unit: str
    values: Floats


@dataclass(frozen=True)
class Well:
    """A well and its curves.

    Attributes:
        name: Of the well.
        uwi: Unique well identifier; empty when the file gives none.
        source: URL of the file.
        x: Easting, NaN when unknown.
        y: Northing, NaN when unknown.
        kb: Elevation of the kelly bushing in metres, NaN when unknown.
        depth: Measured depth in metres, increasing.
        step_m: Native step, NaN when irregular.
        tracks: Its curves.
    """

    name: str
    uwi: str
    source: str
    x: float
    y: float
    kb: float
    depth: Floats
    step_m: float
    tracks: tuple[Track, ...]

    def summary(self) -> WellSummary:
        """What the driver needs to know of it."""
        return WellSummary(
            name=self.name,
            uwi=self.uwi,
            source=self.source,
            place=(self.x, self.y, self.kb),
            first_m=float(self.depth[0]),
            last_m=float(self.depth[-1]),
            step_m=self.step_m,
            median_step_m=float(np.median(np.diff(self.depth))) if self.depth.size > 1 else math.nan,
            count=int(self.depth.size),
            tracks=[(track.name, track.unit, int(np.isfinite(track.values).sum())) for track in self.tracks],
        )

    def dump(self) -> bytes:
        """Depth and values as bytes, read again by `load_arrays`."""
        sink = io.BytesIO()
        values = np.stack([track.values for track in self.tracks])
        np.savez(sink, depth=self.depth, values=values)
        return sink.getvalue()


@dataclass(frozen=True)
class WellSummary:
    """A well without its values.

    Attributes:
        name: Of the well.
        uwi: Unique well identifier.
        source: URL of the file.
        place: x, y and kb.
        first_m: First depth.
        last_m: Last depth.
        step_m: Native step, NaN when irregular.
        median_step_m: Median step, NaN for a single depth.
        count: Number of depths.
        tracks: Mnemonic, unit and number of values of each curve.
    """

    name: str
    uwi: str
    source: str
    place: tuple[float, float, float]
    first_m: float
    last_m: float
    step_m: float
    median_step_m: float
    count: int
    tracks: list[tuple[str, str, int]] = field(default_factory=list)


def dump_summaries(found: tuple[list[tuple[str, WellSummary]], list[Fault]]) -> bytes:
    """What a scan found, as JSON."""
    wells, faults = found
    rows = [{"key": key, **asdict(well)} for key, well in wells]
    return json.dumps({"wells": rows, "faults": [vars(fault) for fault in faults]}).encode()


def load_summaries(body: bytes) -> tuple[list[tuple[str, WellSummary]], list[Fault]]:
    """What a scan found."""
    document: dict[str, Any] = json.loads(body)
    wells = []
    for row in document["wells"]:
        key = row.pop("key")
        tracks = [(name, unit, count) for name, unit, count in row.pop("tracks")]
        x, y, kb = row.pop("place")
        wells.append((key, WellSummary(**row, place=(x, y, kb), tracks=tracks)))
    return wells, [Fault(**fault) for fault in document["faults"]]


def load_arrays(body: bytes) -> tuple[Floats, Floats]:
    """Depth `(depth,)` and values `(curve, depth)` that `Well.dump` stored."""
    with np.load(io.BytesIO(body), allow_pickle=False) as stored:
        return stored["depth"], stored["values"]


def increasing(
    depth_m: Floats, rows: Floats, line_of_row: npt.NDArray[np.int64], where: str
) -> tuple[Floats, Floats, list[Fault]]:
    """Depth and rows `(row, column)` sorted by increasing depth, each depth once, and what was done to get there.

    Rows without a plausible depth and all but the first of those with the same depth are left out.

    Raises:
        FormatError: no row has a depth.
    """
    faults: list[Fault] = []
    with np.errstate(invalid="ignore"):
        sound = np.isfinite(depth_m) & (np.abs(depth_m) <= DEPTH_LIMIT_M)
    if not sound.any():
        raise FormatError("no row has a depth", where=where, measured=f"{depth_m.size} rows, every depth is missing")
    bad = np.flatnonzero(~sound)
    faults += row_faults(
        where, ((line_of_row[row], f"depth {depth_m[row]:g} m is missing or beyond 20 km") for row in bad), bad.size
    )
    depth, values, lines = depth_m[sound], rows[sound], line_of_row[sound]
    steps = np.diff(depth)
    if steps.size and (steps <= 0).all() and (steps < 0).any():
        depth, values, lines = depth[::-1], values[::-1], lines[::-1]
    elif (steps < 0).any():
        back = np.flatnonzero(steps < 0) + 1
        faults += row_faults(
            where, ((lines[row], "depth is less than that of the row before") for row in back), back.size, "sorted in"
        )
        order = np.argsort(depth, kind="stable")
        depth, values, lines = depth[order], values[order], lines[order]
    again = np.flatnonzero(np.diff(depth) == 0) + 1
    if again.size:
        faults += row_faults(
            where, ((lines[row], f"depth {depth[row]:g} m a second time") for row in again), again.size
        )
        depth, values = np.delete(depth, again), np.delete(values, again, axis=0)
    return np.ascontiguousarray(depth), np.ascontiguousarray(values), faults


def row_faults(
    where: str, found: Iterable[tuple[Any, str]], count: int, action: str = "left out", what: str = "row"
) -> list[Fault]:
    """A fault per row, given as line number and what ails it; beyond `FAULT_LIMIT`, one for all the others."""
    faults = []
    for told, (line, ails) in enumerate(found):
        if told == FAULT_LIMIT:
            faults.append(Fault(what, f"{where} further {count - told} {what}s", f"such as: {ails}", action))
            break
        faults.append(Fault(what, f"{where} line {line}", ails, action))
    return faults


def native_grid(depth: Floats, stated_step_m: float = math.nan) -> tuple[float, npt.NDArray[np.int64]] | None:
    """The step of a depth axis and the place of each depth on it, gaps allowed; None when it is irregular.

    Args:
        depth: Increasing, in metres.
        stated_step_m: What the file says, which need not be true.
    """
    if depth.size < 2:
        return None
    steps = np.diff(depth)
    # The mean is the step of an axis without gaps, whatever the file says.
    mean = float(depth[-1] - depth[0]) / (depth.size - 1)
    candidates = [mean, stated_step_m, float(np.median(steps)), float(steps.min())]
    for candidate in candidates:
        if not candidate > 0 or (depth[-1] - depth[0]) / candidate > 2**31:
            continue
        places = np.rint((depth - depth[0]) / candidate).astype(np.int64)
        if places[-1] == 0 or (np.diff(places) < 1).any():
            continue
        # A printed step is rounded as depths are: the line through all depths is the true one.
        step = float(np.dot(places, depth - depth[0]) / np.dot(places, places))
        if np.abs(depth - depth[0] - places * step).max() <= ROUNDING * step:
            exact = stated_step_m if abs(stated_step_m - step) * places[-1] < ROUNDING * step else step
            return float(f"{exact:.10g}"), places
    return None


def first_value(tracks: Sequence[Track], names: Sequence[str]) -> float:
    """The first value of the first curve with one of these names, NaN when there is none."""
    for track in tracks:
        if track.name.upper() in names:
            finite = track.values[np.isfinite(track.values)]
            if finite.size:
                return float(finite[0])
    return math.nan
