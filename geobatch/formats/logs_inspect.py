"""What well logs hold, from raw files or from a survey: suspicious things first, coverage per well and curve."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import xarray as xr

from geobatch.errors import DataError
from geobatch.formats.ingestion import Fault
from geobatch.formats.logs_agree import Column
from geobatch.formats.logs_ingest import LogOptions, Reader, make_plan, place_curve
from geobatch.formats.logs_quality import FIGURES, curve_figures, quality_sentences
from geobatch.formats.logs_survey import Plan, well_cells
from geobatch.formats.logs_well import Well


def inspect_logs(
    sources: Sequence[tuple[str, int, str]], read: Reader, options: LogOptions, src_url: str
) -> dict[str, Any]:
    """The description of raw files, one well in memory at a time after the first pass over them.

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
    arrays = _figures(plan, [well for _, well in found])
    names = [well.name for well in plan.wells]
    return {
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
