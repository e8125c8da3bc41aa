"""A survey or an archive of waveforms as a description and as lines of text: suspicious things first."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from geobatch.formats.lazy import Key, enclosing, lazy_array, small_variables
from geobatch.formats.miniseed_layout import NO_DATA, Group
from geobatch.formats.miniseed_piece import Piece, read_piece
from geobatch.formats.miniseed_scan import Source
from geobatch.formats.miniseed_survey import small_arrays
from geobatch.formats.spec import Inspected
from geobatch.formats.waveform_sample import waveform_spectra
from geobatch.spectrum import spectrum_text
from geobatch.survey import survey_info

SHOWN_CHANNELS = 60


def as_survey(source: Source, groups: Sequence[Group], inventory: Sequence[Mapping[str, Any]]) -> xr.Dataset:
    """The data set that ingest would write: samples float64 with NaN, decoded chunk by chunk from the archive.

    Its validity is what the records' headers say they cover, before any of them is decoded.
    """
    variables: dict[str, xr.Variable] = {}
    for number, group in enumerate(groups):
        variables |= small_variables(*small_arrays(group, inventory))
        for spec, dtype, read in ((group.waveform, "float64", _samples), (group.valid, "bool", _covered)):

            def of_key(key: Key, number: int = number, group: Group = group, read: Any = read) -> npt.NDArray[Any]:
                (rows, _, time), inside = enclosing(key, (len(group.stations), len(group.components), group.samples))
                cells = [read(source, group, number, row, time) for row in range(rows.start, rows.stop)]
                components = enclosing(key[1:2], (len(group.components),))[0][0]
                found: npt.NDArray[Any] = np.stack(cells)[:, components][inside]
                return found

            told = {name: value for name, value in spec.attributes.items() if name != "_FillValue"}
            variables[spec.name] = lazy_array(spec.dims, spec.shape, dtype, of_key, chunks=spec.chunks, **told)
    return xr.Dataset(variables)


def _samples(source: Source, group: Group, number: int, row: int, time: slice) -> npt.NDArray[np.float64]:
    """Samples of one station `(component, sample)`, decoded by whole chunks."""
    small = dataclasses.replace(group, shard=group.chunk, placed=group.placed[:0])
    first, last = time.start // group.chunk, max(time.start, time.stop - 1) // group.chunk
    parts = []
    for column in range(first, last + 1):
        low, high = column * group.chunk, (column + 1) * group.chunk
        own = _within(group, row, slice(low, high))
        canvas = read_piece(Piece(number, row, column, own), source, small)
        parts.append(np.where(canvas.valid & (canvas.samples != NO_DATA), canvas.samples, np.nan))
    start = first * group.chunk
    found: npt.NDArray[np.float64] = np.concatenate(parts, axis=1)[:, time.start - start : time.stop - start]
    return found


def _within(group: Group, row: int, time: slice) -> npt.NDArray[Any]:
    """The stretches of a station that reach into a part of the axis."""
    placed = group.placed
    reaches = (placed["at"] < time.stop) & (placed["at"] + placed["samples"] > time.start)
    found: npt.NDArray[Any] = placed[(placed["station"] == row) & reaches]
    return found


def _covered(source: Source, group: Group, number: int, row: int, time: slice) -> npt.NDArray[np.bool_]:
    """Which samples of one station `(component, sample)` records cover."""
    found = np.zeros((len(group.components), time.stop - time.start), np.bool_)
    for placed in _within(group, row, time):
        low = int(placed["at"]) - time.start
        found[placed["component"], max(low, 0) : max(low + int(placed["samples"]), 0)] = True
    return found


def inspect_waveforms(dataset: xr.Dataset, url: str) -> Inspected:
    """The description of a survey of waveforms: what ingest counted, and spectra of the pieces that are sampled.

    Per sampling rate (`rates`) the time axis and every channel: span, gaps, overlaps, completeness, extremes, samples
    in plateaus at the extremes, and what conflicted or did not decode.
    """
    info = survey_info(dataset, url)
    found = [] if info.get("state") == "complete" else [f"state is {info.get('state')}, not complete"]
    found += info["warnings"]
    if info["faults"]:
        told = ", ".join(f"{count} {what}" for what, count in info["faults"].items())
        found.append(f"faults in the sources, listed in the quality table: {told}")
    rates = copy.deepcopy(info["rates"])
    sampled, doubts = waveform_spectra(dataset, rates)
    described = {
        "suspicious": [*found, *doubts],
        "url": url,
        "kind": "waveforms",
        "state": info.get("state"),
        "quantity": info.get("quantity"),
        "axes": {},
        "crs": info.get("crs"),
        "rates": rates,
        "statistics": info["statistics"],
        "source": info["source"],
    }
    return Inspected(described, dataset, sampled)


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
    if spectrum := channel.get("spectrum"):
        parts.append(spectrum_text(spectrum))
    told = {"identical": "overlapping", "healed": "one-sample overlaps", "clipped": "clipped"}
    counted = {**told, **{name: name for name in ("conflicting", "unusable", "undecoded")}}
    parts += [f"{channel[name]} {word}" for name, word in counted.items() if channel[name]]
    return ", ".join(parts)
