"""Which trace header bytes hold inline and crossline, found in the scanned table by what they make of the traces.

A pair of positions is taken only when its numbers make a grid in equal steps that is filled at least by half, with no
position twice, over which the coordinates lie regularly. Two pairs that place the traces differently are ambiguous.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from geobatch.errors import GeometryError
from geobatch.formats.segy_file import SegyLayout
from geobatch.formats.segy_geometry import Grid, Lines, Numbers, coordinates, fit_bin_grid
from geobatch.formats.segy_scan import TraceTable

Places = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
# Inline and crossline bytes that writers use besides 189 and 193, the commoner first: field record, sequence or shot
# point with ensemble or channel, and the vendors' own words.
KNOWN = ((9, 21), (5, 21), (17, 21), (9, 13), (17, 13), (9, 17), (221, 225), (213, 217), (233, 237))
CHANNEL = 13
SOURCE_X, SOURCE_Y, RECEIVER_X, RECEIVER_Y = 73, 77, 81, 85
# A grid found without being told where has to be far better than one that was named.
GOOD_FILL = 0.5
GOOD_FILL_WITHOUT_COORDINATES = 0.9
# Of the smaller bin spacing; coordinates rounded to metres over bins of 6 m leave less.
MOST_RESIDUAL = 0.25
LEAST_ANGLE_SINE = 0.1


@dataclass(frozen=True)
class Candidate:
    """A pair of header positions whose numbers make a grid.

    Attributes:
        inline: First byte of the inline number.
        crossline: First byte of the crossline number.
        index: Position of each trace on both axes.
        said: What it makes, for messages.
    """

    inline: int
    crossline: int
    index: tuple[Numbers, Numbers]
    said: str

    def places_as(self, other: Candidate) -> bool:
        """True when both put every trace in the same place, or in the transposed one."""
        straight = all(np.array_equal(a, b) for a, b in zip(self.index, other.index, strict=True))
        return straight or all(np.array_equal(a, b) for a, b in zip(self.index, other.index[::-1], strict=True))


def find_candidate(table: TraceTable, layout: SegyLayout, where: str) -> Candidate | None:
    """The only way in which other header bytes place the traces of a post-stack file on a grid, or None.

    Raises:
        GeometryError: several pairs of positions place them differently.
    """
    taken = {layout.offset, SOURCE_X, SOURCE_Y, RECEIVER_X, RECEIVER_Y}
    columns = {byte: table.word(byte) for byte in table.words if byte not in taken}
    lines = {byte: Lines.of(values) for byte, values in columns.items()}
    places = map_places(table)
    known = [pair for pair in KNOWN if set(pair) <= set(columns)]
    others = [pair for pair in itertools.combinations(columns, 2) if not {pair, pair[::-1]} & set(known)]
    for pairs in (known, others):
        found: list[Candidate] = []
        for pair in pairs:
            # Of an unknown pair, the number that changes less often from trace to trace is the inline.
            ordered = (
                pair if pairs is known else sorted(pair, key=lambda byte: np.count_nonzero(np.diff(columns[byte])))
            )
            candidate = _try(columns, lines, (ordered[0], ordered[1]), places, known=pairs is known)
            if candidate is not None and not any(candidate.places_as(other) for other in found):
                found.append(candidate)
        if len(found) > 1:
            raise GeometryError(
                "several header positions make a grid, and not the same one",
                where=where,
                measured="; ".join(f"bytes {c.inline} and {c.crossline}: {c.said}" for c in found[:5]),
                limit="one",
                remedy="Give the right ones: --set inline_byte=… --set crossline_byte=…",
            )
        if found:
            return found[0]
    return None


def map_places(table: TraceTable) -> Places | None:
    """Coordinates of each trace that vary: of the bin, or of the source, which post-stack files may hold instead."""
    x, y = coordinates(table)
    if np.ptp(x) or np.ptp(y):
        return x, y
    return source_places(table)


def source_places(table: TraceTable) -> Places | None:
    """Source coordinates of each trace (bytes 73-80), when they vary."""
    x, y = coordinates(table, SOURCE_X, SOURCE_Y)
    return (x, y) if np.ptp(x) or np.ptp(y) else None


def lies_regularly(grid: Grid, places: Places) -> bool:
    """True when coordinates lie over a grid in equal steps, with both axes in different directions."""
    fitted = fit_bin_grid(grid, *places)
    if fitted is None:
        return False
    _, ax, bx, _, ay, by = fitted["affine"]
    spacings = [s for s in (fitted["inline_spacing_m"], fitted["crossline_spacing_m"]) if s]
    if 1 in grid.shape:
        return bool(spacings) and fitted["rms_residual_m"] <= MOST_RESIDUAL * min(spacings)
    lengths = float(np.hypot(ax, ay) * np.hypot(bx, by))
    spread = abs(ax * by - ay * bx) > LEAST_ANGLE_SINE * lengths
    return len(spacings) == 2 and spread and fitted["rms_residual_m"] <= MOST_RESIDUAL * min(spacings)


def _try(
    columns: dict[int, Numbers],
    lines: dict[int, Lines],
    pair: tuple[int, int],
    places: Places | None,
    *,
    known: bool,
) -> Candidate | None:
    """The candidate of a pair of positions, None when it makes no good grid."""
    one, two = (lines[byte] for byte in pair)
    traces, cells = columns[pair[0]].size, one.count * two.count
    fill = GOOD_FILL if places is not None else GOOD_FILL_WITHOUT_COORDINATES
    if one.count == 1 or two.count == 1 or not fill * cells <= traces <= cells:
        return None
    # Records and channels of a shot survey make a full grid too: only coordinates tell them from lines.
    if places is None and (not known or CHANNEL in pair):
        return None
    index = (one.index(columns[pair[0]]), two.index(columns[pair[1]]))
    if np.bincount(index[0].astype(np.int64) * two.count + index[1], minlength=cells).max() > 1:
        return None
    if places is not None and not lies_regularly(Grid(one.values, two.values, *index), places):
        return None
    said = f"inline {one.first} to {one.last}, crossline {two.first} to {two.last}, {traces / cells:.0%} filled" + (
        ", coordinates regular" if places is not None else ", no coordinates to compare"
    )
    return Candidate(*pair, index, said)
