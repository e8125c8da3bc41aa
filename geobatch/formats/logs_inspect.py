"""What well logs hold, from raw files or from a survey: suspicious things first, coverage per well and curve."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import xarray as xr

from geobatch.errors import DataError
from geobatch.formats.ingestion import Fault
from geobatch.formats.lazy import Key, lazy_array, small_variables
from geobatch.formats.logs_agree import Column
from geobatch.formats.logs_ingest import LogOptions, Reader, make_plan, place_curve
from geobatch.formats.logs_quality import FIGURES, curve_figures, quality_sentences
from geobatch.formats.logs_survey import Plan, identity_arrays, well_cells
from geobatch.formats.logs_well import Well
from geobatch.formats.spec import Inspected
from geobatch.survey import INVALID_CLASS


def inspect_logs(sources: Sequence[tuple[str, int, str]], read: Reader, options: LogOptions, src_url: str) -> Inspected:
    """The description of raw files and their curves on a common axis, each of which is placed there when it is read.

    Raises:
        FormatError: a single file cannot be read.
    """
    faults: list[Fault] = []
    found: list[tuple[str, Well]] = []
    for url, _, _ in sources:
        try:
            wells, more = read(url)
        except DataError as error:
            if len(sources) == 1:
                raise
            faults.append(Fault("file", url, error.what, "left out"))
            continue
        found += [("", well) for well in wells]
        faults += more
    plan, more, warnings = make_plan("", [(key, well.summary()) for key, well in found], options)
    faults += more
    raw = [well for _, well in found]
    arrays = _figures(plan, raw)
    names = [well.name for well in plan.wells]
    told = {
        "suspicious": [*quality_sentences(names, plan.columns, arrays), *warnings, *_told(faults)],
        "url": src_url,
        "kind": "wells",
        "axes": {"depth": _axis(plan.axis.start_m, plan.axis.step_m, plan.axis.count)},
        "wells": [
            {
                "name": well.name,
                "uwi": well.uwi,
                "from_m": well.first_m,
                "to_m": well.last_m,
                "step_m": None if np.isnan(well.step_m) else well.step_m,
                "coverage": {c.name: round(float(arrays["coverage"][w, k]), 4) for k, c in enumerate(plan.columns)},
            }
            for w, well in enumerate(plan.wells)
        ],
        "curves": _curves(plan.columns, arrays),
    }
    return Inspected(told, _as_survey(plan, raw, arrays, options))


def _as_survey(plan: Plan, wells: Sequence[Well], figures: dict[str, Any], options: LogOptions) -> xr.Dataset:
    """The data set that ingest would write."""
    small, values = identity_arrays(plan)
    found = small_variables(small, values)
    found["curve"] = xr.Variable("curve", [column.name for column in plan.columns])
    found |= {name: xr.Variable(("well", "curve"), table) for name, table in figures.items()}
    for column, spec in zip(plan.columns, plan.specs, strict=True):
        read = partial(_read_curve, plan=plan, wells=wells, column=column)
        found[column.name] = lazy_array(
            spec.dims, spec.shape, spec.dtype, read, chunks=spec.chunks, **dict(spec.attributes)
        )
    info = {"kind": "wells", "variables": [column.name for column in plan.columns], "crs": options.crs}
    return xr.Dataset(found, attrs={"geobatch": info})


def _read_curve(key: Key, plan: Plan, wells: Sequence[Well], column: Column) -> Any:
    """One curve of some wells on the common axis, in the type of its variable."""
    rows = np.atleast_1d(np.arange(len(wells))[key[0]])
    found = np.empty((len(rows), plan.axis.count))
    for row, number in enumerate(rows.tolist()):
        values = np.stack([track.values for track in wells[number].tracks])
        found[row] = place_curve(plan, column, number, wells[number].depth, values)
    if column.classes:
        found = np.where(np.isfinite(found), found, INVALID_CLASS).astype(np.uint8)
    return (found if isinstance(key[0], slice) else found[0])[(..., key[1])]


def inspect_wells(dataset: xr.Dataset, url: str) -> dict[str, Any]:
    """The description of a survey of wells, from the figures that ingest kept."""
    info = dataset.attrs["geobatch"]
    arrays = {name: dataset[name].values for name in FIGURES}
    columns = [
        SimpleNamespace(name=name, label="resampled" in dataset[name].attrs, unit=dataset[name].attrs.get("units", ""))
        for name in info["variables"]
    ]
    names = [str(name) for name in dataset["well"].values]
    sentences = quality_sentences(names, columns, arrays)
    sentences += [warning for warning in info["warnings"] if warning not in sentences]
    sentences += [f"{count} {what}" for what, count in info.get("faults", {}).items()]
    return {
        "suspicious": sentences,
        "url": url,
        "kind": "wells",
        "axes": {"depth": _axis(float(dataset["depth"][0]), info["sample_interval"], dataset.sizes["depth"])},
        "wells": [
            {
                "name": name,
                "from_m": float(dataset["depth_start"][w]),
                "to_m": float(dataset["depth_stop"][w]),
                "coverage": {c.name: round(float(arrays["coverage"][w, k]), 4) for k, c in enumerate(columns)},
            }
            for w, name in enumerate(names)
        ],
        "curves": _curves(columns, arrays),
        "statistics": info["statistics"],
    }


def well_rows(info: dict[str, Any]) -> list[tuple[str, str]]:
    """Label and text of each line of the rendered description."""
    axis = info["axes"]["depth"]
    rows = [("depth", f"{axis['count']}: {axis['first']:g} to {axis['last']:g} step {axis['step']:g} m")]
    for well in info["wells"]:
        covered = sum(share > 0 for share in well["coverage"].values())
        rows.append((f"well {well['name']}", f"{well['from_m']:g} to {well['to_m']:g} m, {covered} curves"))
    for name, curve in info["curves"].items():
        text = f"{curve['minimum']:g} to {curve['maximum']:g} {curve['unit']}".rstrip()
        rows.append((name, f"{text}, in {curve['wells']} wells"))
    return rows


def _figures(plan: Plan, wells: Sequence[Well]) -> dict[str, Any]:
    """`FIGURES` as `(well, curve)`."""
    table = np.full((len(wells), len(plan.columns), len(FIGURES)), np.nan)
    for w, well in enumerate(wells):
        values = np.stack([track.values for track in well.tracks])
        for k, column in enumerate(plan.columns):
            table[w, k] = curve_figures(place_curve(plan, column, w, well.depth, values), column, well_cells(plan, w))
    return {name: table[:, :, k] for k, name in enumerate(FIGURES)}


def _curves(columns: Sequence[Column | SimpleNamespace], arrays: dict[str, Any]) -> dict[str, Any]:
    """Unit, wells and range of each curve."""
    with np.errstate(invalid="ignore"):
        return {
            column.name: {
                "unit": column.unit,
                "wells": int((arrays["coverage"][:, k] > 0).sum()),
                "minimum": float(np.nanmin(arrays["minimum"][:, k], initial=np.inf)),
                "maximum": float(np.nanmax(arrays["maximum"][:, k], initial=-np.inf)),
            }
            for k, column in enumerate(columns)
        }


def _axis(start: float, step: float, count: int) -> dict[str, Any]:
    return {"count": count, "first": start, "last": start + step * (count - 1), "step": step, "unit": "m"}


def _told(faults: Sequence[Fault], limit: int = 50) -> list[str]:
    """Faults as sentences."""
    sentences = [f"{fault.where}: {fault.fault} ({fault.action})" for fault in faults[:limit]]
    return sentences if len(faults) <= limit else [*sentences, f"and {len(faults) - limit} faults more"]
