"""A bounded part of a survey of waveforms: where channels have gaps, and pieces of them for spectra and pictures.

At most `MOST_VALID_CHUNKS` chunks of validity and `MOST_STATIONS` times `CHUNKS_PER_STATION` chunks of samples are read
per sampling rate, whatever the archive; the same archive gives the same part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from geobatch.sample import chunks_of
from geobatch.spectrum import Spectrum, spectrum_doubts, trace_spectrum

MOST_STATIONS = 8
CHUNKS_PER_STATION = 8
WINDOW_SAMPLES = 2**14
SEGMENT_SAMPLES = 2**12
MOST_VALID_CHUNKS = 4096
FEWEST_BINS = 8
MOST_GAPS = 2000
# A mean this many standard deviations from zero is an offset of the recorder, which filters and networks meet first.
OFFSET_STDS = 3.0
_KIND = re.compile(r"[\d.%() ]+")


@dataclass(frozen=True)
class ChannelSample:
    """Pieces of one channel.

    Attributes:
        channel: SEED id.
        pieces: `(piece, sample)` float64, NaN where nothing was recorded.
        starts: First sample of each piece on the time axis.
    """

    channel: str
    pieces: npt.NDArray[np.float64]
    starts: npt.NDArray[np.int64]

    def spectrum(self, rate_hz: float) -> Spectrum | None:
        """Mean power spectral density, counts² per Hz."""
        return trace_spectrum(self.pieces, 1 / rate_hz, "s", SEGMENT_SAMPLES)


@dataclass(frozen=True)
class Availability:
    """Where the channels of one station row have no sample.

    Attributes:
        gaps: Per component, first sample and end of each stretch without samples, `(gap, 2)`.
        exact: Every chunk was read; else each part of the axis is told by one chunk of it.
    """

    gaps: tuple[npt.NDArray[np.int64], ...]
    exact: bool


def sample_channels(dataset: xr.Dataset, rate: Mapping[str, Any]) -> list[ChannelSample]:
    """Pieces of every channel of some stations, spread over the station axis and over the time they recorded."""
    waveform = dataset[rate["variable"]]
    names = _channels(dataset, rate)
    chunk = chunks_of(waveform)[2]
    count = -(-waveform.shape[2] // chunk)
    found = []
    for row in _spread(len(names), MOST_STATIONS):
        if not any(names[row]):
            continue
        starts, kept = [], []
        for number in _spread(count, CHUNKS_PER_STATION):
            low = int(number) * chunk
            high = min(low + min(chunk, WINDOW_SAMPLES), waveform.shape[2])
            values = np.asarray(waveform[row, :, low:high].values, np.float64)
            starts.append(low)
            kept.append(
                np.pad(values, ((0, 0), (0, min(chunk, WINDOW_SAMPLES) - (high - low))), constant_values=np.nan)
            )
        stack = np.stack(kept)
        found += [
            ChannelSample(name, stack[:, column], np.array(starts)) for column, name in enumerate(names[row]) if name
        ]
    return found


def read_availability(dataset: xr.Dataset, rate: Mapping[str, Any], row: int, rows: int) -> Availability:
    """Where one station has no samples; of `rows` stations that share what may be read."""
    valid = dataset[rate["valid"]]
    chunk, samples = chunks_of(valid)[2], valid.shape[2]
    count = -(-samples // chunk)
    most = max(FEWEST_BINS, MOST_VALID_CHUNKS // max(rows, 1))
    exact = count <= most
    edges = np.unique(np.linspace(0, count, min(count, most) + 1).astype(np.int64))
    gaps: list[list[tuple[int, int]]] = [[] for _ in range(valid.shape[1])]
    for first, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        low, high = first * chunk, min((first + 1) * chunk, samples)
        held = np.asarray(valid[row, :, low:high].values, np.bool_)
        for column, recorded in enumerate(held):
            own = _gaps(recorded)
            if exact:
                gaps[column] += [(low + a, low + b) for a, b in own]
            elif own:
                # One chunk stands for its part of the axis: so much of that is missing.
                missing = sum(b - a for a, b in own) / recorded.size
                start, length = low, min(end * chunk, samples) - low
                gaps[column].append((start, start + max(1, round(missing * length))))
    return Availability(tuple(_joined(own) for own in gaps), exact)


def waveform_spectra(dataset: xr.Dataset, rates: list[dict[str, Any]]) -> tuple[list[list[ChannelSample]], list[str]]:
    """Pieces per rate, and sentences on what is suspicious in them; spectra go into the channels of `rates`."""
    sampled: list[list[ChannelSample]] = []
    doubts: dict[str, list[str]] = {}
    for rate in rates:
        pieces = sample_channels(dataset, rate)
        told = {channel["channel"]: channel for channel in rate["channels"]}
        for sample in pieces:
            spectrum = sample.spectrum(rate["rate_hz"])
            if spectrum is not None and sample.channel in told:
                figures = spectrum.figures()
                told[sample.channel]["spectrum"] = figures
                for doubt in spectrum_doubts(figures):
                    doubts.setdefault(_KIND.sub("", doubt), []).append(f"{sample.channel}: {doubt}")
        sampled.append(pieces)
        for channel in rate["channels"]:
            if channel["count"] and channel["std"] and abs(channel["mean"]) > OFFSET_STDS * channel["std"]:
                times = abs(channel["mean"]) / channel["std"]
                told_offset = f"mean {channel['mean']:.4g} is {times:.0f} times the standard deviation: DC offset"
                doubts.setdefault("offset", []).append(f"{channel['channel']}: {told_offset}")
    return sampled, [_one(same) for same in doubts.values()]


def _one(same: list[str]) -> str:
    """One sentence for what is said of several channels."""
    return same[0] if len(same) == 1 else f"{same[0]}; likewise {len(same) - 1} more channels"


def _channels(dataset: xr.Dataset, rate: Mapping[str, Any]) -> npt.NDArray[Any]:
    suffix = str(rate["variable"]).removeprefix("waveform")
    names: npt.NDArray[Any] = dataset[f"channel{suffix}"].values
    return names


def _spread(count: int, most: int) -> npt.NDArray[np.int64]:
    """Up to `most` of the numbers from 0 to before `count`, from the middle of as many equal parts."""
    kept = min(count, most)
    return ((np.arange(kept) + 0.5) * count / max(kept, 1)).astype(np.int64)


def _gaps(recorded: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate(([True], recorded, [True])).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _joined(gaps: list[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """Gaps that touch at the edge of a chunk as one, the longest ones where there are very many."""
    joined: list[list[int]] = []
    for start, end in gaps:
        if joined and joined[-1][1] == start:
            joined[-1][1] = end
        else:
            joined.append([start, end])
    found = np.array(joined, np.int64).reshape(-1, 2)
    if len(found) <= MOST_GAPS:
        return found
    longest = np.argsort(found[:, 0] - found[:, 1], kind="stable")[:MOST_GAPS]
    return found[np.sort(longest)]
