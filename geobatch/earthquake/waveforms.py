"""Surveys of waveforms: one sampling rate at a time, windows by UTC time, and MiniSEED out again."""

from __future__ import annotations

import datetime
import io
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from geobatch.errors import DataError, MismatchError, UsageError
from geobatch.formats.libraries import need
from geobatch.storage import absolute_url, open_storage, split_url
from geobatch.survey import open_survey, survey_info

Time = str | datetime.datetime | np.datetime64
NS_PER_S = 1_000_000_000
SAME_RATE = 1e-6
WRITTEN_SAMPLES = 2**22


@dataclass(frozen=True)
class Sampling:
    """The time axis of an array: sample i was taken at `start_ns + i / rate_hz`.

    Attributes:
        start_ns: Time of sample 0, ns since 1970 UTC.
        rate_hz: Samples per second.
    """

    start_ns: int
    rate_hz: float

    def sample_at(self, time: Time) -> float:
        """The position of a time on the axis, in samples."""
        seconds, ns = divmod(time_ns(time) - self.start_ns, NS_PER_S)
        return seconds * self.rate_hz + ns * (self.rate_hz / NS_PER_S)

    def time_of(self, sample: int) -> np.datetime64:
        """The time of a sample, to the ns."""
        seconds, part = divmod(sample, self.rate_hz)
        return np.datetime64(self.start_ns, "ns") + np.timedelta64(
            round((seconds + part / self.rate_hz) * NS_PER_S), "ns"
        )


def sampling(waveform: xr.DataArray) -> Sampling:
    """The time axis that an array's attributes `start` and `sampling_rate_hz` tell.

    Raises:
        MismatchError: it has none.
    """
    start, rate = waveform.attrs.get("start"), waveform.attrs.get("sampling_rate_hz")
    if start is None or rate is None:
        raise MismatchError(
            "array has no time axis", where=str(waveform.name), limit="attributes start and sampling_rate_hz"
        )
    return Sampling(time_ns(str(start)), float(rate))


def open_waveforms(url: str, rate_hz: float | None = None) -> xr.Dataset:
    """The survey's arrays of one sampling rate, lazily: `waveform` and `valid` `(station, component, time)`.

    Args:
        url: A survey of kind waveforms.
        rate_hz: Which rate; the one with the most samples when not given.

    Raises:
        UsageError: the survey has no such rate; those it has are named.
        MismatchError: the survey is of another kind.
    """
    dataset = open_survey(url)
    rates = _rates(dataset, url)
    if rate_hz is None:
        return _of_rate(dataset, rates[0])
    for entry in rates:
        if abs(entry["rate_hz"] - rate_hz) <= SAME_RATE * rate_hz:
            return _of_rate(dataset, entry)
    held = ", ".join(f"{entry['rate_hz']:g}" for entry in rates)
    raise UsageError("survey has no such sampling rate", where=url, measured=f"{rate_hz:g} Hz", limit=f"{held} Hz")


def open_rates(url: str) -> xr.DataTree:
    """All arrays of the survey, one node per sampling rate such as `100hz`, each as `open_waveforms` gives it.

    Raises:
        MismatchError: the survey is of another kind.
    """
    dataset = open_survey(url)
    nodes = {f"{entry['rate_hz']:g}hz": _of_rate(dataset, entry) for entry in _rates(dataset, url)}
    tree = xr.DataTree.from_dict(nodes)
    tree.attrs = dict(dataset.attrs)
    return tree


def read_window(survey: xr.Dataset, station: str, start: Time, end: Time) -> xr.DataArray:
    """The samples of a station from `start` to before `end`, `(component, time)`, lazily; NaN where none was recorded.

    Counts that are integers on disk come as float64, which holds each of them.

    Args:
        survey: What `open_waveforms` or `open_survey` opened.
        station: `NET.STA.LOC.BI` as on the station axis, or as much of it from the front as names one station.
        start: UTC time; the first sample is the first one not before it.
        end: UTC time; the window is cut at the ends of the survey.

    Returns:
        An array whose attributes `start` (of its own first sample) and `sampling_rate_hz` are its time axis.

    Raises:
        UsageError: no station or several are named so, or the window does not overlap the survey.
    """
    waveform = survey["waveform"]
    axis = sampling(waveform)
    row = _station_row(waveform, station)
    first, last = (int(np.ceil(round(axis.sample_at(time), 6))) for time in (start, end))
    low, high = max(first, 0), min(last, waveform.sizes["time"])
    if low >= high:
        span = f"{axis.time_of(0)} to {axis.time_of(waveform.sizes['time'] - 1)}"
        raise UsageError("window lies outside the survey", measured=f"{start} to {end}", limit=span)
    window = waveform.isel(station=row, time=slice(low, high))
    return window.assign_attrs(start=f"{axis.time_of(low)}Z")


def write_miniseed(survey: xr.Dataset, url: str, *, record_length: int = 512) -> int:
    """The number of traces written to one MiniSEED file: every unbroken run of valid samples of every channel.

    Counts are written as Steim-2, other samples as they are stored. Four million samples of one channel are in memory
    at a time, and the file goes to its place as it is made.

    Args:
        survey: What `open_waveforms` opened; one sampling rate.
        url: File on S3 or a file system.
        record_length: Bytes per record, a power of two from 256.

    Raises:
        DataError: the survey has no valid sample.
        UsageError: obspy is not installed.
    """
    obspy = need("obspy", "earthquake")
    waveform, axis = survey["waveform"], sampling(survey["waveform"])
    counts = str(waveform.encoding.get("dtype", waveform.dtype)) == "int32"
    root, name = split_url(absolute_url(url))
    traces = 0
    channels = survey["channel"].values
    if not any(_has_samples(survey, *index) for index in np.argwhere(channels != "")):
        raise DataError("survey has no valid sample to write", where=url)
    with open_storage(root).open_writer(name) as write:
        for row, column in np.argwhere(channels != ""):
            network, station, location, channel = str(channels[row, column]).split(".")
            for begin in range(0, waveform.sizes["time"], WRITTEN_SAMPLES):
                part = {"station": row, "component": column, "time": slice(begin, begin + WRITTEN_SAMPLES)}
                samples, valid = waveform.isel(part).values, survey["valid"].isel(part).values
                for low, high in _runs(valid):
                    header = {
                        "network": network,
                        "station": station,
                        "location": location,
                        "channel": channel,
                        "sampling_rate": axis.rate_hz,
                        "starttime": obspy.UTCDateTime(ns=int(axis.time_of(begin + low).astype(np.int64))),
                    }
                    data = samples[low:high].astype(np.int32) if counts else np.ascontiguousarray(samples[low:high])
                    sink = io.BytesIO()
                    trace = obspy.Trace(data, header)
                    trace.write(sink, format="MSEED", reclen=record_length, encoding=_encoding(data))
                    write(sink.getvalue())
                    traces += 1
    return traces


def time_ns(time: Time) -> int:
    """Nanoseconds since 1970 of a UTC time; a text may end in `Z` or an offset."""
    if isinstance(time, str):
        text = time.removesuffix("Z")
        offset = re.search(r"T.*[+-]\d\d:?\d\d$", text)
        time = datetime.datetime.fromisoformat(text) if offset else np.datetime64(text, "ns")
    if isinstance(time, datetime.datetime):
        utc = time.astimezone(datetime.UTC).replace(tzinfo=None) if time.tzinfo else time
        time = np.datetime64(utc, "ns")
    return int(time.astype("datetime64[ns]").astype(np.int64))


def _rates(dataset: xr.Dataset, url: str) -> list[dict[str, Any]]:
    info = survey_info(dataset, url)
    if info.get("kind") != "waveforms":
        raise MismatchError("survey holds no waveforms", where=url, measured=f"kind {info.get('kind')}")
    rates: list[dict[str, Any]] = info["rates"]
    return rates


def _of_rate(dataset: xr.Dataset, entry: dict[str, Any]) -> xr.Dataset:
    """The variables of one rate under their plain names."""
    suffix = str(entry["variable"]).removeprefix("waveform")
    own = [str(name) for name, array in dataset.variables.items() if f"station{suffix}" in array.dims]
    own.append(f"component{suffix}")
    picked = dataset[[name for name in own if name not in dataset.dims]]
    names = {str(name) for name in (*picked.variables, *picked.dims)} if suffix else set()
    return picked.rename({name: name.removesuffix(suffix) for name in names})


def _station_row(waveform: xr.DataArray, station: str) -> int:
    names = [str(name) for name in waveform["station"].values]
    rows = [row for row, name in enumerate(names) if name == station] or [
        row for row, name in enumerate(names) if f"{name}.".startswith(f"{station.rstrip('.')}.")
    ]
    if len(rows) != 1:
        what = "several stations are named so" if rows else "survey has no such station"
        told = [names[row] for row in rows] or names
        raise UsageError(what, measured=station, limit=", ".join(told[:10]))
    return rows[0]


def _has_samples(survey: xr.Dataset, row: int, column: int) -> bool:
    valid = survey["valid"].isel(station=int(row), component=int(column))
    step = WRITTEN_SAMPLES
    return any(bool(valid.isel(time=slice(at, at + step)).any()) for at in range(0, valid.sizes["time"], step))


def _runs(valid: np.ndarray[Any, Any]) -> list[tuple[int, int]]:
    """First sample and end of every run of valid samples."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], valid.astype(np.int8), [0]))))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _encoding(data: np.ndarray[Any, Any]) -> str:
    """Steim-2 for integers whose differences it can hold, 30 bits."""
    if data.dtype != np.int32:
        return {4: "FLOAT32", 8: "FLOAT64"}[data.dtype.itemsize]
    steps = np.diff(data.astype(np.int64), prepend=0)
    return "STEIM2" if np.abs(steps).max() < 2**29 else "INT32"
