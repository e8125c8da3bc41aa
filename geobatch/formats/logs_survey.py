"""What a survey of wells holds: its arrays, the identity of each well, figures of quality, and its description."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geobatch.formats.logs_agree import Column
from geobatch.formats.logs_quality import FIGURES
from geobatch.formats.logs_resample import DRIFT, DepthAxis
from geobatch.formats.logs_well import WellSummary
from geobatch.formats.spec import IngestOptions
from geobatch.moments import PartialMoments, figures, merge_moments
from geobatch.shards import ArraySpec
from geobatch.storage import split_url
from geobatch.survey import COMPLETE, INVALID_CLASS, SCHEMA, class_attributes

# Version of everything in the readers of logs that decides a value: parsing, units, resampling.
NUMERICAL_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """All that writing a group needs.

    Attributes:
        url: The survey.
        keys: Object of each parsed well.
        wells: Every well.
        columns: Every variable.
        specs: Array of each variable.
        axis: The common depth axis.
        max_gap_m: As in the options.
    """

    url: str
    keys: tuple[str, ...]
    wells: tuple[WellSummary, ...]
    columns: tuple[Column, ...]
    specs: tuple[ArraySpec, ...]
    axis: DepthAxis
    max_gap_m: float | None


def identity_arrays(plan: Plan) -> tuple[list[ArraySpec], dict[str, npt.NDArray[Any]]]:
    """Axes and per-well identity."""
    wells, number = plan.wells, len(plan.wells)
    shifts = [_shift(plan, well) for well in wells]
    texts = {"well": [w.name for w in wells], "uwi": [w.uwi for w in wells], "source": [w.source for w in wells]}
    floats = {
        "x": ([w.place[0] for w in wells], {"long_name": "easting of the well", "crs": ""}),
        "y": ([w.place[1] for w in wells], {"long_name": "northing of the well", "crs": ""}),
        "kb": ([w.place[2] for w in wells], {"long_name": "elevation of the kelly bushing", "units": "m"}),
        "depth_start": ([w.first_m for w in wells], {"long_name": "first logged depth", "units": "m"}),
        "depth_stop": ([w.last_m for w in wells], {"long_name": "last logged depth", "units": "m"}),
        "native_step": ([w.step_m for w in wells], {"long_name": "native depth step, NaN irregular", "units": "m"}),
        "depth_shift": (shifts, {"long_name": "true depth minus depth of the cell, NaN resampled", "units": "m"}),
    }
    names = {"well": "well name", "uwi": "unique well identifier", "source": "source file"}
    values: dict[str, npt.NDArray[Any]] = {"depth": plan.axis.values}
    specs = [
        ArraySpec.small("depth", ("depth",), values["depth"], long_name="measured depth", units="m", positive="down")
    ]
    for name, words in texts.items():
        values[name] = np.array(words, dtype=np.dtypes.StringDType()).reshape(number)
        specs.append(ArraySpec.small(name, ("well",), values[name], long_name=names[name]))
    for name, (figures_, attributes) in floats.items():
        values[name] = np.array(figures_, np.float64)
        specs.append(ArraySpec.small(name, ("well",), values[name], **attributes))
    return specs, values


def _shift(plan: Plan, well: WellSummary) -> float:
    """How far a well whose native samples were kept lies beside the axis; NaN when it was resampled."""
    if well.count > 1 and not math.isfinite(well.step_m):
        return math.nan
    span = round((well.last_m - well.first_m) / well.step_m) if well.count > 1 else 0
    ends = np.array([well.first_m, well.last_m]) if span else np.array([well.first_m])
    if span and abs(well.step_m - plan.axis.step_m) * span > DRIFT * plan.axis.step_m:
        return math.nan
    first = round((ends[0] - plan.axis.start_m) / plan.axis.step_m)
    shift = float(ends[0] - (plan.axis.start_m + first * plan.axis.step_m))
    return 0.0 if abs(shift) < 1e-6 * plan.axis.step_m else shift


def well_cells(plan: Plan, number: int) -> slice:
    """The cells of the axis that the well's own depth range covers."""
    well, axis = plan.wells[number], plan.axis
    first = max(0, round((well.first_m - axis.start_m) / axis.step_m))
    return slice(first, min(axis.count, round((well.last_m - axis.start_m) / axis.step_m) + 1))


def curve_spec(column: Column, wells: int, count: int, chunk: int, depth_shard: int, per_shard: int) -> ArraySpec:
    """The array of one variable `(well, depth)`: float32 with NaN, or uint8 with CF flags where classes were given."""
    attributes: dict[str, Any] = {"long_name": column.about, "units": column.unit, "coordinates": "x y"}
    dtype, fill = "float32", math.nan
    if column.classes:
        colors = [f"#{hashlib.sha256(name.encode()).hexdigest()[:6]}" for name in column.classes]
        attributes = {**class_attributes(column.classes, colors), "coordinates": "x y", "long_name": column.about}
        dtype, fill = "uint8", INVALID_CLASS
    if column.label:
        attributes["resampled"] = "nearest"
    dims = ("well", "depth")
    return ArraySpec(column.name, dims, (wells, count), dtype, (1, chunk), (per_shard, depth_shard), fill, attributes)


def merged_figures(
    plan: Plan, parts: Sequence[dict[str, Any]]
) -> tuple[list[ArraySpec], dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Quality per well and curve as arrays, and statistics per curve."""
    per_curve = [[row for part in parts for row in part["quality"][k]] for k in range(len(plan.columns))]
    names = np.array([column.name for column in plan.columns], dtype=np.dtypes.StringDType())
    values: dict[str, npt.NDArray[Any]] = {"curve": names}
    specs = [ArraySpec.small("curve", ("curve",), names, long_name="curve")]
    for k, (name, about) in enumerate(FIGURES.items()):
        values[name] = np.array([[row[k] for row in rows] for rows in per_curve], np.float64).T
        specs.append(ArraySpec.small(name, ("well", "curve"), values[name], long_name=about))
    statistics = {}
    for k, column in enumerate(plan.columns):
        merged = functools.reduce(merge_moments, (PartialMoments(**part["moments"][k]) for part in parts))
        statistics[column.name] = figures(merged)
    return specs, values, statistics


def describe(
    plan: Plan,
    sources: Sequence[tuple[str, int, str]],
    options: IngestOptions,
    statistics: dict[str, Any],
    warnings: list[str],
    digests: list[str],
    values: dict[str, npt.NDArray[Any]],
) -> dict[str, Any]:
    """The `geobatch` attribute of the survey."""
    whole = hashlib.sha256(f"geobatch logs {NUMERICAL_VERSION}".encode())
    for digest in digests:
        whole.update(digest.encode())
    whole.update("\n".join([*map(str, values["well"]), *(column.name for column in plan.columns)]).encode())
    for name in ("depth", "depth_shift"):
        whole.update(values[name].tobytes())
    versions = hashlib.sha256("\n".join(version for _, _, version in sources).encode()).hexdigest()
    one = len(sources) == 1
    return {
        "schema": SCHEMA,
        "kind": "wells",
        "variable": plan.columns[0].name,
        "variables": [column.name for column in plan.columns],
        "quantity": "well logs",
        "domain": "depth",
        "sample_interval": plan.axis.step_m,
        "sample_unit": "m",
        "crs": options.crs,
        "statistics": statistics,
        "source": {
            "url": sources[0][0] if one else split_url(sources[0][0])[0],
            "size_bytes": sum(size for _, size, _ in sources),
            "version": sources[0][2] if one else versions,
            "files": len(sources),
        },
        "warnings": list(warnings),
        "numerical_version": NUMERICAL_VERSION,
        "identity": whole.hexdigest(),
        "state": COMPLETE,
        **({"attribution": options.attribution} if options.attribution else {}),
    }
