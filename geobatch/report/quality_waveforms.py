"""Pictures of waveforms and event windows for `geobatch inspect`: availability, traces, spectra, picks, magnitudes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from geobatch.formats.waveform_sample import ChannelSample, read_availability
from geobatch.report.charts import (
    ALERT,
    INK,
    LINE_COLORS,
    SECOND,
    Chart,
    histogram,
    linear,
    logarithmic,
    of_names,
    of_time,
    shortened,
)
from geobatch.report.figures import Group, Panel
from geobatch.spectrum import Spectrum

Array = npt.NDArray[Any]
NS_PER_S = 1_000_000_000
# Rows of the picture of gaps; further stations are told in the table.
MOST_ROWS = 60
ROW_HEIGHT = 15.0
MOST_TRACES = 6
MOST_SPECTRA = 6
TRACE_S = 600.0
MOST_WINDOWS = 6
LOWEST_DB = -80.0
NAMES_LEFT = 138.0
BINS_PER_OCTAVE = 12


def waveform_groups(
    dataset: xr.Dataset, told: dict[str, Any], sampled: Sequence[Sequence[ChannelSample]] | None
) -> list[Group]:
    """Per sampling rate: gaps per channel over time, pieces of some channels, and their spectra."""
    groups = []
    for rate, pieces in zip(told["rates"], sampled or [[] for _ in told["rates"]], strict=True):
        hz = rate["rate_hz"]
        panels = [_availability(dataset, rate), *(_trace(rate, sample) for sample in pieces[:MOST_TRACES])]
        if spectra := _spectra(pieces, hz):
            panels.append(spectra)
        stations = len({sample.channel.rsplit(".", 1)[0] for sample in pieces})
        note = f"Traces and spectra from {len(pieces)} channels of {stations} stations, spread over the time axis."
        groups.append(Group(f"Channels of {hz:g} Hz", note if pieces else "", panels))
    return groups


def _availability(dataset: xr.Dataset, rate: dict[str, Any]) -> Panel:
    """Recorded stretches and gaps of each channel, as far as rows go."""
    suffix = str(rate["variable"]).removeprefix("waveform")
    names = dataset[f"channel{suffix}"].values
    known = {channel["channel"]: channel for channel in rate["channels"]}
    rows = [row for row in range(len(names)) if any(names[row])]
    shown = rows[:: -(-len(rows) * max(1, names.shape[1]) // MOST_ROWS)]
    start = _ns(rate["start"])
    scale = NS_PER_S / rate["rate_hz"]
    labels = [str(name) for row in shown for name in names[row] if name]
    chart = Chart(
        of_time(start, start + round(rate["samples"] * scale)),
        of_names(labels),
        left=NAMES_LEFT,
        height=ROW_HEIGHT * len(labels) + 12,
    )
    place, exact = 0, True
    for row in shown:
        found = read_availability(dataset, rate, row, len(shown))
        exact &= found.exact
        for column, name in enumerate(names[row]):
            if not name:
                continue
            bottom, top = np.array([place + 0.85]), np.array([place + 0.15])
            ends = np.array([start]), np.array([start + rate["samples"] * scale])
            chart.areas(*ends, bottom, top, INK)
            gaps = found.gaps[column] * scale + start
            if (longest := known[str(name)]["longest_gap"]) is not None:
                at = _ns(longest["start"])
                gaps = np.vstack([gaps, [at, at + longest["seconds"] * NS_PER_S]])
            many = np.full(len(gaps), bottom[0]), np.full(len(gaps), top[0])
            chart.areas(gaps[:, 0], gaps[:, 1], *many, ALERT, least=0.8)
            place += 1
    notes = (
        [] if exact else ["One chunk stands for each part of the axis: gaps are drawn as long as their share of it."]
    )
    if len(shown) < len(rows):
        notes.append(f"{len(shown)} of {len(rows)} stations are shown.")
    legend = [("recorded", INK), ("no sample", ALERT)]
    return chart.panel("Availability", legend=legend, note=" ".join(notes))


def _trace(rate: dict[str, Any], sample: ChannelSample) -> Panel:
    """The piece of a channel that varies most among the fullest ones, up to ten minutes of it."""
    length = min(sample.pieces.shape[1], max(2, round(TRACE_S * rate["rate_hz"])))
    held = sample.pieces[:, :length]
    counts = np.isfinite(held).sum(axis=1)
    full = np.flatnonzero(counts >= 0.9 * counts.max())
    number = int(full[np.argmax([np.ptp(held[n][np.isfinite(held[n])]) if counts[n] else 0.0 for n in full])])
    values = held[number]
    scale = NS_PER_S / rate["rate_hz"]
    start = _ns(rate["start"]) + sample.starts[number] * scale
    finite = values[np.isfinite(values)]
    ends = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    chart = Chart(of_time(round(start), round(start + length * scale)), linear(*ends, "counts"), 0.4, 74.0)
    chart.line(start + np.arange(length) * scale, values, width=0.8)
    return chart.panel(
        shortened(sample.channel, 40), note="" if finite.size else "Nothing was recorded in the pieces read."
    )


def _spectra(pieces: Sequence[ChannelSample], rate_hz: float) -> Panel | None:
    """Power spectral density of some channels, in dB of one count² per Hz."""
    found = [(sample.channel, sample.spectrum(rate_hz)) for sample in pieces[:MOST_SPECTRA]]
    curves = [(name, *_smoothed(s)) for name, s in found if s]
    if not curves:
        return None
    top = max(float(level.max()) for _, _, level in curves)
    low = max(min(float(level.min()) for _, _, level in curves), top - 140)
    x = logarithmic(float(curves[0][1][0]), rate_hz / 2, "frequency (Hz)")
    chart = Chart(x, linear(low, top + 3, "power (dB of 1 count²/Hz)"))
    legend = []
    for color, (name, frequency, level) in zip(LINE_COLORS, curves, strict=False):
        chart.line(frequency, level, color, 1.2)
        legend.append((shortened(name, 24), color))
    return chart.panel(
        "Spectra", legend=legend, note="Welch, mean of the pieces that were read, by twelfths of an octave."
    )


def _smoothed(spectrum: Spectrum) -> tuple[Array, Array]:
    """Frequency and level in dB by parts of an octave, as wide as their spacing allows."""
    octave = np.floor(BINS_PER_OCTAVE * np.log2(spectrum.frequency[1:])).astype(np.int64)
    _, part, count = np.unique(octave, return_inverse=True, return_counts=True)
    frequency, power = (np.bincount(part, values[1:]) / count for values in (spectrum.frequency, spectrum.power))
    return frequency, 10 * np.log10(np.maximum(power, 1e-30))


def window_groups(dataset: xr.Dataset, told: dict[str, Any]) -> list[Group]:
    """Some windows with their picks, and how magnitudes and picks are distributed."""
    waveform = dataset["waveform"]
    picked = np.flatnonzero(np.isfinite(dataset["p_sample"].values))
    among = picked if picked.size else np.arange(waveform.shape[0])
    chosen = among[np.unique(np.linspace(0, among.size - 1, MOST_WINDOWS).astype(np.int64))]
    components = [str(c) for c in dataset["component"].values]
    panels = [_window(dataset, int(number), components) for number in chosen]
    groups = [Group("Windows", "Each component over its own range; as stored, neither filtered nor scaled.", panels)]
    figures = []
    for name, label in (("magnitude", "magnitude"), ("source_depth_km", "source depth (km)")):
        values = np.asarray(dataset[name].values, np.float64)
        if np.isfinite(values).any():
            figures.append(histogram(values, label, label.partition(" (")[0].capitalize(), bins=40, tails=0))
    lag = (
        np.asarray(dataset["s_sample"].values - dataset["p_sample"].values, np.float64)
        / dataset["sampling_rate_hz"].values
    )
    if np.isfinite(lag).any():
        figures.append(histogram(lag, "S minus P (s)", "Time from P to S", bins=40, tails=0))
    return [*groups, Group("Distribution", "", figures)] if figures else groups


def _window(dataset: xr.Dataset, number: int, components: list[str]) -> Panel:
    """One window: its components above each other, with P and S."""
    rate = float(dataset["sampling_rate_hz"].values[number])
    known = np.isfinite(rate) and rate > 0
    length = int(dataset["length"].values[number])
    values = np.asarray(dataset["waveform"][number, :, :length].values, np.float64)
    step = 1 / rate if known else 1.0
    label = "time (s)" if known else "sample"
    chart = Chart(linear(0, max(length - 1, 1) * step, label), of_names(components), 0.55)
    for row, trace in enumerate(values):
        finite = trace[np.isfinite(trace)]
        if finite.size and np.ptp(finite):
            off = trace - np.median(finite)
            chart.line(np.arange(length) * step, row + 0.5 - 0.46 * off / np.nanmax(np.abs(off)), width=0.8)
    legend = []
    for name, variable, color in (("P", "p_sample", ALERT), ("S", "s_sample", SECOND)):
        at = float(dataset[variable].values[number])
        if np.isfinite(at):
            chart.upright(at * step, color, 1.0)
            legend.append((name, color))
    magnitude = float(dataset["magnitude"].values[number])
    told = f", magnitude {magnitude:g}" if np.isfinite(magnitude) else ""
    return chart.panel(shortened(f"{dataset['name'].values[number]}", 48) + told, legend=legend)


def _ns(time: str) -> int:
    return int(np.datetime64(time.removesuffix("Z"), "ns").astype(np.int64))
