"""The description of a survey that was ingested from SEG-Y, and what in it should be looked at."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from geobatch.formats.segy_file import SegyFile, said_samples
from geobatch.formats.segy_map import LENGTH, bin_grid, line_figures, map_coordinates, map_unit
from geobatch.formats.segy_meaning import Meaning
from geobatch.formats.segy_placement import Placement
from geobatch.formats.segy_scan import FLAT_SAMPLES, TraceTable
from geobatch.moments import figures
from geobatch.survey import COMPLETE, SCHEMA

# What the standard allows in trace header bytes 71-72, with 0 for 1.
SCALARS = {0, *(sign * 10**power for sign in (1, -1) for power in range(5))}


def describe(
    file: SegyFile,
    placement: Placement,
    meaning: Meaning,
    crs: str | None,
    identity: str,
    numerical_version: int = 1,
) -> dict[str, Any]:
    """The `geobatch` attribute of the survey."""
    described: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": placement.kind,
        "variable": meaning.quantity,
        "quantity": meaning.quantity,
        "domain": meaning.domain,
        "sample_interval": meaning.sample_interval,
        "sample_unit": meaning.sample_unit,
        "evidence": meaning.evidence,
        "bin_grid": bin_grid(file, placement),
        "crs": crs,
        "statistics": _statistics(file, placement, meaning),
        "source": {
            "url": file.url,
            "size_bytes": file.size_bytes,
            "version": file.version,
            "format_code": file.format_code,
            "byte_order": "big" if file.byte_order == ">" else "little",
            "revision": file.revision,
            "layout": dataclasses.asdict(placement.layout),
            "unit_factor": meaning.unit_factor,
            "uneven": file.uneven,
        },
        "warnings": _warnings(file, placement, meaning),
        "numerical_version": numerical_version,
        "identity": identity,
        "state": COMPLETE,
    }
    if file.parts:
        described["source"]["files"] = [
            {"url": part.url, "size_bytes": part.size_bytes, "version": part.version, "traces": part.trace_count}
            for part in file.parts
        ]
    if placement.kind == "gathers":
        fold = placement.fold()
        recorded = fold[fold > 0]
        described["fold"] = {
            "min": int(recorded.min()),
            "median": float(np.median(recorded)),
            "max": int(recorded.max()),
            "empty_bins": int((fold == 0).sum()),
        }
    if placement.kind == "traces":
        described["line"] = line_figures(file, placement)
    return described


def _statistics(file: SegyFile, placement: Placement, meaning: Meaning) -> dict[str, Any]:
    table = placement.table
    left_out = placement.spare.left_out.size if placement.spare else 0
    return {
        **figures(table.moments),
        "non_finite": table.non_finite,
        "traces": file.trace_count,
        "dead_traces": int((~table.live).sum()),
        "missing_traces": math.prod(placement.shape) - (file.trace_count - left_out),
        "duplicate_traces": int(left_out),
        "non_finite_traces": int(table.spoilt.sum()),
        "clipped_traces": _clipped(table) if meaning.quantity == "amplitude" else 0,
    }


def _clipped(table: TraceTable) -> int:
    """Traces that stay at the largest or at the smallest sample of the file, the more of the two."""
    return max(table.highest[1], table.lowest[1])


def _warnings(file: SegyFile, placement: Placement, meaning: Meaning) -> list[str]:
    """What a geophysicist should look at before using the survey."""
    table = placement.table
    found = [*placement.notes, *meaning.doubts]
    if not table.live.any():
        found.append("no trace is live: every sample is zero or not finite, or every trace is coded dead")
    if table.non_finite:
        found.append(f"{table.non_finite} samples of live traces are not finite")
    if placement.spare is not None:
        found.append(
            f"{placement.spare.left_out.size} traces stand in the place of another and were left out: see the quality"
            " table"
        )
    if meaning.quantity == "amplitude" and (clipped := _clipped(table)):
        found.append(
            f"{clipped} traces stay at the largest or smallest amplitude of the file ({table.lowest[0]:g},"
            f" {table.highest[0]:g}) for {FLAT_SAMPLES} samples or more: clipped"
        )
    return found + _file_warnings(file, table) + _map_warnings(file, placement)


def _file_warnings(file: SegyFile, table: TraceTable) -> list[str]:
    found = []
    low, high = table.fields["trace_samples"]
    if file.uneven:
        found.append(f"traces differ in length: {low} to {high} samples, shorter ones end in NaN")
    elif (low, high) not in ((0, 0), (file.sample_count, file.sample_count)):
        differ = ": if they differ in length, --set lengths=varying" if low != high else ""
        found.append(f"trace headers give {low} to {high} samples, the binary header {file.sample_count}{differ}")
    said = said_samples(file.header, file.byte_order, file.revision)
    if not file.uneven and said not in (0, file.sample_count):
        found.append(f"the file header gives {said} samples, trace headers {file.sample_count}, which fit the file")
    for part in file.parts or (file,):
        if part.left_over:
            found.append(f"{part.left_over} bytes at the end of {part.url} make no whole trace and were left out")
        if part.said_traces and part.said_traces != part.trace_count:
            found.append(f"the file header gives {part.said_traces} traces, {part.url} holds {part.trace_count}")
    return found


def _map_warnings(file: SegyFile, placement: Placement) -> list[str]:
    found = []
    x, y = map_coordinates(file, placement)
    if file.trace_count > 1 and np.ptp(x) == 0 and np.ptp(y) == 0:
        found.append("cdp_x and cdp_y do not vary: the survey has no map coordinates")
    odd = sorted(set(np.unique(placement.table.scalar).tolist()) - SCALARS)
    if odd:
        found.append(
            f"coordinate scalar {odd[0]} in header bytes 71-72 is no power of ten up to 10000: coordinates may be wrong"
        )
    unit = map_unit(file, placement)
    said = placement.table.fields["coordinate_units"][1]
    if said > LENGTH and not unit.is_angle:
        found.append(f"unit code {said} in bytes 89-90 says angles, which the coordinates are not: taken as lengths")
    if unit.is_angle:
        found.append(
            f"coordinates are angles (unit code {unit.code} in bytes 89-90): cdp_x and cdp_y are degrees, spacing in"
            " metres is taken on a sphere"
        )
    if unit.name == "ft":
        found.append("the binary header gives lengths in feet: cdp_x and cdp_y are kept as they are")
    return found
