"""A survey or an archive of waveforms as a description and as lines of text: suspicious things first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import xarray as xr

from geobatch.survey import survey_info

SHOWN_CHANNELS = 60


def inspect_waveforms(dataset: xr.Dataset, url: str) -> dict[str, Any]:
    """The description of a survey of waveforms, from what ingest counted: no sample is read.

    Per sampling rate (`rates`) the time axis and every channel: span, gaps, overlaps, completeness, extremes, samples
    in plateaus at the extremes, and what conflicted or did not decode.
    """
    info = survey_info(dataset, url)
    found = [] if info.get("state") == "complete" else [f"state is {info.get('state')}, not complete"]
    found += info["warnings"]
    if info["faults"]:
        told = ", ".join(f"{count} {what}" for what, count in info["faults"].items())
        found.append(f"faults in the sources, listed in the quality table: {told}")
    return {
        "suspicious": found,
        "url": url,
        "kind": "waveforms",
        "state": info.get("state"),
        "quantity": info.get("quantity"),
        "axes": {},
        "crs": info.get("crs"),
        "rates": info["rates"],
        "statistics": info["statistics"],
        "source": info["source"],
    }


def waveform_rows(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Label and text of each line of a description of waveforms."""
    rows = [("kind", str(info["kind"])), ("crs", info.get("crs") or "not given")]
    for rate in info["rates"]:
        label = f"{rate['rate_hz']:g} Hz"
        span = f"{rate['start']} to {rate['end']}, {rate['samples']} samples"
        rows.append((label, f"{rate['variable']} {rate['dtype']}, {rate['stations']} stations, {span}"))
        shown = sorted(rate["channels"], key=lambda channel: channel["completeness"])[:SHOWN_CHANNELS]
        rows += [(channel["channel"], _channel_text(channel)) for channel in shown]
        if len(rate["channels"]) > len(shown):
            rows.append(("", f"and {len(rate['channels']) - len(shown)} channels that are more complete"))
    return rows


def _channel_text(channel: Mapping[str, Any]) -> str:
    parts = [f"{channel['completeness']:.1%}", f"{channel['gaps']} gaps ({channel['gap_s']:g} s)"]
    if longest := channel["longest_gap"]:
        parts.append(f"longest {longest['seconds']:g} s from {longest['start']}")
    if channel["count"]:
        parts.append(f"{channel['min']:g} to {channel['max']:g}, std {channel['std']:.4g}")
    told = {"identical": "overlapping", "healed": "one-sample overlaps", "clipped": "clipped"}
    counted = {**told, **{name: name for name in ("conflicting", "unusable", "undecoded")}}
    parts += [f"{channel[name]} {word}" for name, word in counted.items() if channel[name]]
    return ", ".join(parts)
