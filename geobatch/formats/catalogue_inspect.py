"""What a catalogue of earthquakes holds, suspicious things first: missing figures, default depths, blasts, silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

SAME_DEPTH = 0.2
DAY_SHARE = 0.6
DAY_HOURS = (7, 19)
ENOUGH = 50
HOUR_NS = 3600 * 10**9


def inspect_catalogue(dataset: xr.Dataset, url: str) -> dict[str, Any]:
    """The description of a survey of events."""
    info = dataset.attrs["geobatch"]
    columns = {str(name): array.values for name, array in dataset.data_vars.items() if name != "time"}
    told = inspect_events(dataset["time"].values.astype("datetime64[ns]").astype(np.int64), columns, url)
    told["suspicious"] += [w for w in info["warnings"] if w not in told["suspicious"]]
    told["suspicious"] += [f"{count} {what}" for what, count in info.get("faults", {}).items()]
    return {**told, "crs": info.get("crs"), "source": info.get("source")}


def inspect_events(time_ns: npt.NDArray[np.int64], columns: Mapping[str, npt.NDArray[Any]], url: str) -> dict[str, Any]:
    """The description of events.

    Args:
        time_ns: Origin times in nanoseconds since 1970, sorted.
        columns: Numbers and words by name, one per event.
        url: Where they are from.
    """
    numbers = {name: np.asarray(values) for name, values in columns.items() if np.asarray(values).dtype.kind == "f"}
    times = time_ns.astype("datetime64[ns]")
    axes = {"event": {"count": int(time_ns.size), "first": 0, "last": int(time_ns.size) - 1, "step": 1, "unit": ""}}
    return {
        "suspicious": _suspicious(time_ns, numbers),
        "url": url,
        "kind": "catalogue",
        "axes": axes,
        "start_time": str(times[0]),
        "end_time": str(times[-1]),
        "ranges": {
            name: [float(np.nanmin(values)), float(np.nanmax(values))]
            for name, values in numbers.items()
            if np.isfinite(values).any()
        },
        "magnitude_types": _counts(columns.get("magnitude_type")),
        "event_types": _counts(columns.get("event_type")),
        "magnitude_of_completeness": completeness(numbers["magnitude"]),
    }


def catalogue_rows(info: dict[str, Any]) -> list[tuple[str, str]]:
    """Label and text of each line of the rendered description."""
    rows = [("events", f"{info['axes']['event']['count']}: {info['start_time'][:19]} to {info['end_time'][:19]} UTC")]
    rows += [(name, f"{low:g} to {high:g}") for name, (low, high) in info["ranges"].items()]
    for name in ("magnitude_types", "event_types"):
        if info[name]:
            told = list(info[name].items())[:8]
            rows.append((name.replace("_", " "), ", ".join(f"{word} {count}" for word, count in told)))
    if (level := info["magnitude_of_completeness"]) is not None:
        rows.append(("complete above", f"magnitude {level:g} (maximum curvature)"))
    return rows


def completeness(magnitude: npt.NDArray[np.float64]) -> float | None:
    """Magnitude of completeness by maximum curvature, bins of 0.1 (Wiemer & Wyss 2000); None below 50 events."""
    finite = magnitude[np.isfinite(magnitude)]
    if finite.size < ENOUGH:
        return None
    bins = np.floor(finite * 10 + 1e-6).astype(np.int64)
    if np.ptp(bins) > 1000:
        return None
    counts = np.bincount(bins - bins.min())
    return float(round((int(np.argmax(counts)) + int(bins.min())) / 10, 1))


def _suspicious(time_ns: npt.NDArray[np.int64], numbers: Mapping[str, npt.NDArray[np.float64]]) -> list[str]:
    """Sentences, worst first."""
    found = []
    magnitude, depth = numbers["magnitude"], numbers["depth_km"]
    count = time_ns.size
    if np.isnan(magnitude).any():
        found.append(f"{np.isnan(magnitude).mean():.1%} of the events have no magnitude")
    if np.isnan(depth).all():
        found.append("no event has a depth")
    elif count >= ENOUGH:
        values, counts = np.unique(depth[np.isfinite(depth)], return_counts=True)
        if counts.max() > SAME_DEPTH * count:
            found.append(
                f"{counts.max() / count:.0%} of the events lie at {values[counts.argmax()]:g} km: a default depth?"
            )
    with np.errstate(invalid="ignore"):
        if (magnitude > 10).any() or (magnitude < -5).any():
            found.append(f"magnitudes reach from {np.nanmin(magnitude):g} to {np.nanmax(magnitude):g}")
    if count >= ENOUGH:
        # Local solar time: quarry blasts are fired by day.
        hour = (time_ns // HOUR_NS + np.floor(numbers["longitude"] / 15)) % 24
        share = float(((hour >= DAY_HOURS[0]) & (hour < DAY_HOURS[1])).mean())
        if share > DAY_SHARE:
            found.append(f"{share:.0%} of the events are by day: blasts among them?")
        later = int(time_ns[-1] - time_ns[0])
        gaps = np.diff(time_ns)
        if later and gaps.max() > 0.1 * later and count > 1000:
            start = str(time_ns[gaps.argmax() : gaps.argmax() + 1].astype("datetime64[ns]")[0])[:10]
            found.append(f"no event for {gaps.max() / HOUR_NS / 24:.0f} days from {start}")
    return found


def _counts(words: npt.NDArray[Any] | None) -> dict[str, int]:
    if words is None:
        return {}
    return dict(Counter(str(word) or "(none)" for word in words).most_common())
