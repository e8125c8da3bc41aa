"""Where the traces of a file stand: on a grid, in gathers on a grid, or along a line of traces."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from geobatch.errors import GeometryError
from geobatch.formats.segy_detect import KNOWN, SOURCE_X, SOURCE_Y, find_candidate, lies_regularly, source_places
from geobatch.formats.segy_file import SegyLayout
from geobatch.formats.segy_geometry import (
    MIN_FILL,
    MOST_DUPLICATES,
    Duplicates,
    Grid,
    Lines,
    Numbers,
    Spare,
    coordinates,
    few,
    make_grid,
    place,
    spare_traces,
    too_sparse,
)
from geobatch.formats.segy_scan import TraceTable

Geometry = Literal["auto", "grid", "gathers", "traces"]
GatherAxis = Literal["offset", "angle"]


@dataclass(frozen=True)
class Arrangement:
    """What the traces are to become.

    Attributes:
        geometry: `grid`, `gathers` or `traces`; `auto` takes the first of them that the headers support.
        duplicates: Which of several traces in one place is kept.
        gather_axis: What the third number of a gather is.
        offset_bin: Width of the bins of that axis; its numbers are taken as they are when not given.
        detect: Look for inline and crossline in other header bytes when the layout's make no grid.
    """

    geometry: Geometry = "auto"
    duplicates: Duplicates = "first"
    gather_axis: GatherAxis = "offset"
    offset_bin: float | None = None
    detect: bool = True


@dataclass(frozen=True)
class Placement:
    """Where each trace of a file stands in the arrays of a survey.

    Attributes:
        kind: Of the survey: `volume`, `gathers` or `traces`.
        axes: Numbers along each axis but the samples', in order; none of `trace`.
        shape: Length of each of those axes.
        index: Position of each trace on each of them.
        spare: Traces that are left out.
        bins: The grid of inlines and crosslines, None for `traces`.
        layout: The header positions that were taken.
        table: The scanned file with the numbers at these positions.
        notes: What was taken for granted, for the survey's warnings.
    """

    kind: Literal["volume", "gathers", "traces"]
    axes: dict[str, npt.NDArray[Any]]
    shape: tuple[int, ...]
    index: tuple[Numbers, ...]
    spare: Spare | None
    bins: Grid | None
    layout: SegyLayout
    table: TraceTable
    notes: tuple[str, ...] = ()

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of all axes but the samples'."""
        return tuple(self.axes) or ("trace",)

    def place(self, values: npt.NDArray[Any], fill: float | int | bool) -> npt.NDArray[Any]:
        """A value per trace at its position, `fill` where there is no trace."""
        return place(self.shape, self.index, self.spare, values, fill)

    def per_bin(self, values: npt.NDArray[Any], fill: float | int | bool) -> npt.NDArray[Any]:
        """A value per trace on the map `(inline, crossline)`; of a gather, that of one of its traces."""
        assert self.bins is not None
        return place(self.bins.shape, self.index[:2], self.spare, values, fill)

    def fold(self) -> npt.NDArray[np.int32]:
        """Traces per position of the map `(inline, crossline)`, those left out among them."""
        assert self.bins is not None
        cells = self.bins.inline_index.astype(np.int64) * self.bins.shape[1] + self.bins.crossline_index
        return np.bincount(cells, minlength=math.prod(self.bins.shape)).reshape(self.bins.shape).astype(np.int32)


def arrange(table: TraceTable, layout: SegyLayout, where: str, how: Arrangement) -> Placement:
    """The placement of a file's traces.

    Raises:
        GeometryError: the traces make nothing of the kind asked for, or several header positions make a grid.
    """
    if how.geometry == "traces":
        return _line(table, layout, ())
    pre_stack = table.varying[layout.offset][0] != table.varying[layout.offset][1]
    attempts = []
    if how.geometry in ("auto", "grid"):
        attempts.append(_volume)
    if how.geometry == "gathers" or (how.geometry == "auto" and pre_stack):
        attempts.append(_gathers)
    failures = []
    for attempt in attempts:
        try:
            return attempt(table, layout, where, how)
        except GeometryError as error:
            failures.append(error)
    if how.detect and how.geometry != "gathers" and not pre_stack:
        candidate = find_candidate(table, layout, where)
        if candidate is not None:
            taken = dataclasses.replace(layout, inline=candidate.inline, crossline=candidate.crossline)
            note = (
                f"inline and crossline were taken from header bytes {taken.inline} and {taken.crossline}"
                f" ({candidate.said}), because bytes {layout.inline} and {layout.crossline} make no grid:"
                f" {failures[0].what}"
            )
            found = _volume(_retaken(table, taken), taken, where, how)
            return dataclasses.replace(found, notes=(note, *found.notes))
    if how.detect and how.geometry != "grid" and pre_stack:
        found_gathers = _known_gathers(table, layout, where, how)
        if found_gathers is not None:
            return found_gathers
    if how.geometry != "auto":
        raise failures[-1]
    names = ("grid", "gathers")[: len(failures)]
    reasons = "; ".join(f"no {name}: {e.what} ({e.measured})" for name, e in zip(names, failures, strict=True))
    return _line(
        table,
        layout,
        (f"kept as single traces, {reasons}; if they lie on a grid, --set inline_byte=… --set crossline_byte=…",),
    )


def _volume(table: TraceTable, layout: SegyLayout, where: str, how: Arrangement) -> Placement:
    grid = make_grid(table, layout, where, how.duplicates)
    notes: tuple[str, ...] = ()
    x, y = coordinates(table)
    places = source_places(table) if not (np.ptp(x) or np.ptp(y)) else None
    if places is not None and lies_regularly(grid, places):
        layout = dataclasses.replace(layout, cdp_x=SOURCE_X, cdp_y=SOURCE_Y)
        table = dataclasses.replace(table, x=table.word(SOURCE_X), y=table.word(SOURCE_Y))
        notes = (
            "cdp_x and cdp_y were taken from the source coordinates in header bytes 73-80, which lie regularly over"
            " the grid, because those of the bin do not vary",
        )
    return Placement(
        kind="volume",
        axes={"inline": grid.inline, "crossline": grid.crossline},
        shape=grid.shape,
        index=(grid.inline_index, grid.crossline_index),
        spare=grid.spare,
        bins=grid,
        layout=layout,
        table=table,
        notes=notes,
    )


def _gathers(table: TraceTable, layout: SegyLayout, where: str, how: Arrangement) -> Placement:
    """Traces on `(inline, crossline, offset)`; offsets in bins, or as they are when enough of them repeat."""
    inline, crossline = Lines.of(table.inline), Lines.of(table.crossline)
    numbers = table.word(layout.offset).astype(np.float64)
    if how.offset_bin is not None:
        numbers = np.rint(numbers / how.offset_bin) * how.offset_bin
    offsets, offset_index = np.unique(numbers, return_inverse=True)
    traces, shape = numbers.size, (inline.count, crossline.count, offsets.size)
    if inline.count == 1 and crossline.count == 1 and traces > 1:
        raise GeometryError(
            "every trace has the same inline and crossline number",
            where=where,
            measured=f"inline {inline.first} in byte {layout.inline}, crossline {crossline.first} in byte"
            f" {layout.crossline}",
            remedy="Give the header bytes: --set inline_byte=… --set crossline_byte=…",
        )
    if too_sparse(traces, math.prod(shape)):
        raise GeometryError(
            f"gathers fill too little of inline, crossline and {how.gather_axis}",
            where=where,
            measured=f"{traces} traces on {' x '.join(map(str, shape))} positions",
            limit=f"at least {MIN_FILL:.0%} filled",
            remedy=f"Put the numbers of the {how.gather_axis} axis into bins: --set offset_bin=…",
        )
    index = (inline.index(table.inline), crossline.index(table.crossline), offset_index.astype(np.int32))
    cell = (index[0].astype(np.int64) * shape[1] + index[1]) * shape[2] + index[2]
    spare = spare_traces(cell, math.prod(shape), table.live, how.duplicates)
    if spare is not None and (how.duplicates == "refuse" or not few(spare.left_out.size, traces)):
        raise GeometryError(
            f"several traces share one inline, crossline and {how.gather_axis}",
            where=where,
            measured=f"{spare.left_out.size} of {traces} traces would be left out, such as trace {spare.left_out[0]}"
            f" for trace {spare.instead[0]}",
            limit=f"at most {MOST_DUPLICATES:.0%}" if how.duplicates != "refuse" else "none",
            remedy="Give narrower bins with --set offset_bin=…, or keep them with --set geometry=traces.",
        )
    whole = bool((offsets == np.rint(offsets)).all())
    return Placement(
        kind="gathers",
        axes={
            "inline": inline.values,
            "crossline": crossline.values,
            how.gather_axis: offsets.astype(np.int32) if whole else offsets,
        },
        shape=shape,
        index=index,
        spare=spare,
        bins=Grid(inline.values, crossline.values, index[0], index[1]),
        layout=layout,
        table=table,
    )


def _known_gathers(table: TraceTable, layout: SegyLayout, where: str, how: Arrangement) -> Placement | None:
    """Gathers by the first pair of header positions that writers use whose bins lie regularly on the map, or None."""
    x, y = coordinates(table)
    if not (np.ptp(x) or np.ptp(y)):
        return None
    for inline, crossline in KNOWN:
        taken = dataclasses.replace(layout, inline=inline, crossline=crossline)
        try:
            found = _gathers(_retaken(table, taken), taken, where, how)
        except GeometryError:
            continue
        if found.bins is not None and 1 not in found.bins.shape and lies_regularly(found.bins, (x, y)):
            note = (
                f"inline and crossline were taken from header bytes {inline} and {crossline}, over which the bins lie"
                f" regularly, because bytes {layout.inline} and {layout.crossline} make no gathers"
            )
            return dataclasses.replace(found, notes=(note,))
    return None


def _line(table: TraceTable, layout: SegyLayout, notes: tuple[str, ...]) -> Placement:
    """Every trace in the order of the file."""
    count = table.live.size
    return Placement(
        kind="traces",
        axes={},
        shape=(count,),
        index=(np.arange(count, dtype=np.int32),),
        spare=None,
        bins=None,
        layout=layout,
        table=table,
        notes=notes,
    )


def _retaken(table: TraceTable, layout: SegyLayout) -> TraceTable:
    return dataclasses.replace(table, inline=table.word(layout.inline), crossline=table.word(layout.crossline))
