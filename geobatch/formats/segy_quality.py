"""Bad traces of a SEG-Y file as rows of the quality table: runs of traces, not one row per trace of a dead block."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from geobatch.formats.ingestion import Fault
from geobatch.formats.segy_file import SegyFile
from geobatch.formats.segy_placement import Placement

MOST_ROWS = 1000


def faults(file: SegyFile, placement: Placement) -> list[Fault]:
    """What is wrong with the traces of a file and what became of them, in at most some thousand rows."""
    table = placement.table
    found = [
        Fault("trace", f"{part.url} after trace {part.trace_count - 1}", f"{part.left_over} bytes", "left out")
        for part in file.parts or (file,)
        if part.left_over
    ]
    rows = (
        _rows(file, placement, np.flatnonzero(~table.live & ~table.spoilt), "dead: zero or coded dead", "masked"),
        _rows(file, placement, np.flatnonzero(~table.live & table.spoilt), "dead: no finite sample", "masked"),
        _rows(file, placement, np.flatnonzero(table.live & table.spoilt), "samples not finite", "kept"),
        _duplicates(file, placement),
    )
    return found + [fault for each in rows for fault in each]


def _rows(
    file: SegyFile, placement: Placement, ordinals: npt.NDArray[np.int64], fault: str, action: str
) -> Iterator[Fault]:
    """One row per run of traces that follow each other in the file."""
    if not ordinals.size:
        return
    edges = np.flatnonzero(np.diff(ordinals) > 1)
    firsts = ordinals[np.concatenate([[0], edges + 1])]
    lasts = ordinals[np.concatenate([edges, [ordinals.size - 1]])]
    for first, last in zip(firsts[:MOST_ROWS].tolist(), lasts[:MOST_ROWS].tolist(), strict=True):
        where = _where(file, placement, first)
        if last > first:
            where += f" to {_where(file, placement, last)}: {last - first + 1} traces"
        yield Fault("trace", where, fault, action)
    if firsts.size > MOST_ROWS:
        rest = int((lasts - firsts + 1)[MOST_ROWS:].sum())
        yield Fault("trace", f"{file.url}: {rest} more in {firsts.size - MOST_ROWS} runs", fault, action)


def _duplicates(file: SegyFile, placement: Placement) -> Iterator[Fault]:
    if placement.spare is None:
        return
    left_out, instead = placement.spare.left_out, placement.spare.instead
    for ordinal, kept in zip(left_out[:MOST_ROWS].tolist(), instead[:MOST_ROWS].tolist(), strict=True):
        same = f"same place as {file.trace_name(kept)}"
        yield Fault("trace", _where(file, placement, ordinal), same, "left out")
    if left_out.size > MOST_ROWS:
        rest = f"{file.url}: {left_out.size - MOST_ROWS} more"
        yield Fault("trace", rest, "same place as another trace", "left out")


def _where(file: SegyFile, placement: Placement, ordinal: int) -> str:
    table = placement.table
    return f"{file.trace_name(ordinal)} (inline {table.inline[ordinal]}, crossline {table.crossline[ordinal]})"
