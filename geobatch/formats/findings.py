"""What a description says of an axis, of traces and of values, and which of it is suspicious."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from geobatch.spectrum import spectrum_doubts

MANY_DEAD = 0.05
# Half a bin: traces further off stand in their neighbour's place.
MAX_RESIDUAL_BINS = 0.5
MAX_SKEW_DEG = 1.0
MANY_CLIPPED = 0.01
HEAVY_TAIL = 100.0
TRACES = (
    "traces",
    "dead_traces",
    "missing_traces",
    "duplicate_traces",
    "non_finite_traces",
    "clipped_traces",
)


def axis_figures(values: npt.NDArray[Any], unit: str) -> dict[str, Any]:
    """Count, first, last, step and unit of an axis; the step is None where it is irregular."""
    steps = np.unique(np.diff(values))
    return {
        "count": int(values.size),
        "first": values[0].item(),
        "last": values[-1].item(),
        "step": steps[0].item() if steps.size and np.allclose(steps, steps[0]) else None,
        "unit": unit,
    }


def quality(info: dict[str, Any], units: str) -> dict[str, Any]:
    """Quantity, distribution and trace counts from the survey's own statistics."""
    statistics = info.get("statistics") or {}
    return {
        "quantity": info.get("quantity"),
        "units": units,
        "evidence": info.get("evidence", {}),
        "distribution": {name: value for name, value in statistics.items() if name not in TRACES},
        "traces": {name: statistics[name] for name in TRACES if name in statistics},
    }


def suspicious(described: dict[str, Any], info: dict[str, Any]) -> list[str]:
    """Sentences on what should be looked at before the survey is used."""
    found = list(info.get("warnings", []))
    if described.get("state") not in (None, "complete"):
        found.insert(0, f"state is {described['state']}, not complete")
    traces = described.get("traces", {})
    recorded, dead, missing = (traces.get(n) or 0 for n in ("traces", "dead_traces", "missing_traces"))
    if recorded and dead / recorded > MANY_DEAD:
        found.append(f"{dead} of {recorded} traces are dead ({dead / recorded:.1%})")
    if missing:
        found.append(
            f"{missing} of {recorded + missing} positions have no trace ({missing / (recorded + missing):.1%})"
        )
    fold = described.get("fold")
    if fold and fold["min"] < fold["max"]:
        found.append(f"fold varies from {fold['min']} to {fold['max']}, median {fold['median']:g}")
    grid = described.get("bin_grid")
    if grid:
        spacing = min(filter(None, (grid["inline_spacing_m"], grid["crossline_spacing_m"])), default=0.0)
        if spacing and grid["rms_residual_m"] > MAX_RESIDUAL_BINS * spacing:
            found.append(
                f"coordinates leave a regular grid by {grid['rms_residual_m']:.1f} m rms, bins are {spacing:.1f} m"
            )
    elif described.get("makes", described["kind"]) in ("volume", "gathers"):
        found.append("no bin grid: coordinates are missing or do not vary")
    found += _irregular(described) + _clipped_by_trace(described.get("sample", {}), traces)
    found += _odd_values(described.get("distribution", {}), described.get("quantity"))
    return found + (spectrum_doubts(described["spectrum"]) if "spectrum" in described else [])


def _irregular(described: dict[str, Any]) -> list[str]:
    """Axes of lines in unequal steps, and bins that are no rectangles."""
    found = [
        f"{name} numbers grow in unequal steps"
        for name in ("inline", "crossline")
        if (axis := described["axes"].get(name)) and axis["count"] > 2 and axis["step"] is None
    ]
    angle = (described.get("regularity") or {}).get("angle_deg")
    if angle is not None and abs(abs(angle) - 90) > MAX_SKEW_DEG:
        found.append(f"inlines and crosslines meet at {abs(angle):.1f} degrees: bins are no rectangles")
    return found


def _clipped_by_trace(sample: dict[str, Any], traces: dict[str, Any]) -> list[str]:
    """Traces that were clipped each at its own level, which the extremes of the whole survey do not show."""
    clipped, sampled = sample.get("clipped", 0), sample.get("traces", 0)
    if clipped <= MANY_CLIPPED * sampled or traces.get("clipped_traces"):
        return []
    return [f"{clipped} of {sampled} sampled traces stay at their own largest or smallest amplitude: clipped"]


def _odd_values(distribution: dict[str, Any], quantity: str | None) -> list[str]:
    found = []
    std = distribution.get("std")
    if std == 0:
        found.append(f"every live sample is {distribution['mean']:g}")
    elif std and quantity == "amplitude":
        peak = max(abs(distribution["min"]), abs(distribution["max"]))
        if peak > HEAVY_TAIL * std:
            found.append(f"largest amplitude {peak:g} is {peak / std:.0f} times the standard deviation: spikes")
        if abs(distribution["mean"]) > 0.5 * std:
            found.append(f"mean {distribution['mean']:g} is far from zero for amplitudes (std {std:g})")
    return found
