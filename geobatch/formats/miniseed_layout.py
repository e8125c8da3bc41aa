"""Where every stretch of an archive goes: arrays by sampling rate, rows of stations, samples on a common grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geobatch.errors import DataError, FormatError
from geobatch.formats.ingestion import Fault
from geobatch.formats.miniseed_headers import DOUBLE, INTEGER, NS_PER_S, SINGLE
from geobatch.formats.miniseed_scan import FileTable, Part, Source
from geobatch.shards import ArraySpec

COMPONENTS = "ZNE"
ALIASES = {"1": "N", "2": "E", "3": "Z"}
NO_DATA = -(2**31)
# What xarray and Zarr count samples in.
MOST_SAMPLES = 2**53

PLACED = np.dtype(
    [
        ("file", "i4"),
        ("station", "i4"),
        ("component", "i4"),
        ("channel", "i4"),
        ("at", "i8"),
        ("samples", "i8"),
        ("records", "i8"),
        ("offset", "i8"),
        ("end", "i8"),
    ]
)
"""One row a stretch of a group: file, row of the station, component, channel, first sample on the axis, bytes."""


@dataclass(frozen=True)
class Group:
    """All that has one sampling rate: one set of arrays.

    Attributes:
        rate_hz: Samples per second.
        suffix: Of the names of its arrays and axes; empty for the group with the most samples.
        start_ns: Time of sample 0, ns since 1970 UTC.
        samples: Length of the axis.
        stations: `NET.STA.LOC.BI`, band and instrument code, of each row.
        components: Of the component axis.
        channels: SEED channel id per `(station, component)`, empty where there is none.
        dtype: Of the samples.
        chunk: Samples per chunk.
        shard: Samples per shard.
        placed: Rows of `PLACED`, in the order in which they are placed: by file, then by byte.
        names: SEED channel id of each channel number.
    """

    rate_hz: float
    suffix: str
    start_ns: int
    samples: int
    stations: tuple[str, ...]
    components: tuple[str, ...]
    channels: tuple[tuple[str, ...], ...]
    dtype: str
    chunk: int
    shard: int
    placed: npt.NDArray[Any]
    names: tuple[str, ...]

    @property
    def waveform(self) -> ArraySpec:
        """The spec of the samples."""
        number = self.dtype == "int32"
        attributes: dict[str, Any] = {
            "long_name": "ground motion as recorded",
            "units": "counts",
            "sampling_rate_hz": self.rate_hz,
            "start": self.start,
        }
        if number:
            attributes["_FillValue"] = NO_DATA
        return self._spec("waveform", self.dtype, NO_DATA if number else math.nan, attributes)

    @property
    def valid(self) -> ArraySpec:
        """The spec of the validity of every sample."""
        return self._spec("valid", "bool", False, {"long_name": "sample was recorded", "units": "1"})

    @property
    def start(self) -> str:
        """Time of sample 0, ISO 8601 to the ns."""
        return str(np.datetime64(self.start_ns, "ns")) + "Z"

    def seconds(self, samples: int) -> float:
        """How long so many samples last."""
        return samples / self.rate_hz

    def time(self, sample: int) -> str:
        """The time of a sample, to the microsecond."""
        return spelled_time(self.start_ns + round(sample / self.rate_hz * NS_PER_S))

    def _spec(self, name: str, dtype: str, fill: float | bool, attributes: dict[str, Any]) -> ArraySpec:
        counts = (len(self.stations), len(self.components))
        return ArraySpec(
            f"{name}{self.suffix}",
            (f"station{self.suffix}", f"component{self.suffix}", f"time{self.suffix}"),
            (*counts, self.samples),
            dtype,
            (1, counts[1], self.chunk),
            (1, counts[1], self.shard),
            fill,
            attributes,
        )


@dataclass(frozen=True)
class Layout:
    """The groups of an archive, the one with most samples first, and what was odd about placing them."""

    groups: tuple[Group, ...]
    faults: tuple[Fault, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Cut:
    """How arrays are cut, and what of the archive is wanted.

    Attributes:
        chunk: Most samples per chunk.
        shard: Most samples per shard.
        start_ns: Nothing before this time.
        end_ns: Nothing from this time on.
        offset_limit: Fraction of a sample from which a clock's offset from the grid is told.
    """

    chunk: int
    shard: int
    start_ns: int | None
    end_ns: int | None
    offset_limit: float


def lay_out(source: Source, parts: Sequence[Part], tables: Sequence[FileTable], cut: Cut) -> Layout:
    """The place of every stretch.

    Raises:
        FormatError: no record of the archive gives samples.
        DataError: nothing lies in the span asked for, or an axis would have more than 2^53 samples.
    """
    names, rows, files = _merged(parts, tables)
    if not len(rows):
        raise FormatError(
            "no MiniSEED record with samples there", where=source.url, measured=f"{len(source.keys)} files"
        )
    rates, count = np.unique(rows["rate"], return_inverse=True)
    weight = np.bincount(count, rows["samples"])
    faults: list[Fault] = []
    warnings = _rate_warnings(rows, names)
    groups: list[Group] = []
    for number in np.argsort(-weight, kind="stable"):
        mine = np.flatnonzero(count == number)
        suffix = f"_{_spelled(float(rates[number]))}hz" if groups else ""
        group = _group(source, names, rows[mine], files[mine], suffix, cut, faults)
        groups += [group] if group else []
    if not groups:
        raise DataError("nothing lies in the span asked for", where=source.url, remedy="Give another start or end.")
    return Layout(tuple(groups), tuple(faults), tuple(warnings))


def spelled_time(time_ns: int) -> str:
    """A time as ISO 8601 to the microsecond."""
    return str(np.datetime64(time_ns, "ns").astype("datetime64[us]")) + "Z"


def _merged(
    parts: Sequence[Part], tables: Sequence[FileTable]
) -> tuple[tuple[str, ...], npt.NDArray[Any], npt.NDArray[np.int64]]:
    """All channels, all stretches with their numbers among them, and the file of each."""
    names = tuple(sorted({name for table in tables for name in table.channels}))
    number = {name: position for position, name in enumerate(names)}
    rows, files = [], []
    for part, table in zip(parts, tables, strict=True):
        own = table.stretches.copy()
        if len(own):
            own["channel"] = np.array([number[name] for name in table.channels])[own["channel"]]
        rows.append(own)
        files.append(np.full(len(own), part.file, np.int64))
    return names, np.concatenate(rows), np.concatenate(files)


def _rate_warnings(rows: npt.NDArray[Any], names: Sequence[str]) -> list[str]:
    found = []
    for channel in np.unique(rows["channel"]):
        mine = rows[rows["channel"] == channel]
        rates = np.unique(mine["rate"])
        if len(rates) > 1:
            told = ", ".join(f"{rate:g}" for rate in rates)
            found.append(f"{names[channel]} has several sampling rates: {told} Hz; each is in the arrays of its rate")
        odd = np.unique(mine["header_rate"][mine["header_rate"] != mine["rate"]])
        if len(odd):
            found.append(f"{names[channel]}: headers give {odd[0]:.9g} Hz, placed on the grid of {rates[0]:g} Hz")
    return found


def _group(
    source: Source,
    names: tuple[str, ...],
    rows: npt.NDArray[Any],
    files: npt.NDArray[np.int64],
    suffix: str,
    cut: Cut,
    faults: list[Fault],
) -> Group | None:
    """The arrays of one rate; None where the span asked for holds nothing of it."""
    rate = float(rows["rate"][0])
    start_ns, at = _on_grid(rows, rate)
    faults += _offsets(source, names, rows, files, start_ns, rate, cut.offset_limit)
    low, high = 0, int((at + rows["samples"]).max())
    if cut.start_ns is not None:
        low = max(low, math.ceil((cut.start_ns - start_ns) * rate / NS_PER_S))
    if cut.end_ns is not None:
        high = min(high, math.ceil((cut.end_ns - start_ns) * rate / NS_PER_S))
    inside = (at < high) & (at + rows["samples"] > low)
    if not inside.any():
        return None
    if high - low > MOST_SAMPLES:
        raise DataError("the time axis is too long", measured=f"{high - low} samples", limit=MOST_SAMPLES)
    rows, files, at = rows[inside], files[inside], at[inside]
    stations, components, channels, place = _axes([names[number] for number in np.unique(rows["channel"])])
    placed = np.zeros(len(rows), PLACED)
    where = np.array([place.get(name, (0, 0)) for name in names])[rows["channel"]]
    placed["file"], placed["station"], placed["component"] = files, where[:, 0], where[:, 1]
    placed["at"] = at - low
    for name in ("channel", "samples", "records", "offset", "end"):
        placed[name] = rows[name]
    # No chunk is larger than what any channel holds, so that records far apart cost no memory between them.
    most = int(np.bincount(rows["channel"], rows["samples"]).max())
    chunk = max(1, min(cut.chunk, most, high - low))
    shard = chunk * max(1, min(cut.shard // cut.chunk, -(-min(most, high - low) // chunk)))
    return Group(
        rate,
        suffix,
        start_ns + round(low / rate * NS_PER_S),
        high - low,
        stations,
        components,
        channels,
        _dtype(set(rows["kind"].tolist())),
        chunk,
        shard,
        placed[np.lexsort((placed["offset"], placed["file"]))],
        names,
    )


def _on_grid(rows: npt.NDArray[Any], rate: float) -> tuple[int, npt.NDArray[np.int64]]:
    """The time of sample 0, that of the first segment, and the first sample of every stretch."""
    start_ns = int(rows["start_ns"].min())
    return start_ns, _steps(rows["start_ns"] - start_ns, rate) + rows["first"]


def _steps(lapse_ns: npt.NDArray[np.int64], rate: float) -> npt.NDArray[np.int64]:
    """The nearest whole number of samples."""
    seconds, ns = np.divmod(lapse_ns, NS_PER_S)
    return np.rint(seconds * rate + ns * (rate / NS_PER_S)).astype(np.int64)


def _offsets(
    source: Source,
    names: tuple[str, ...],
    rows: npt.NDArray[Any],
    files: npt.NDArray[np.int64],
    start_ns: int,
    rate: float,
    limit: float,
) -> list[Fault]:
    """A fault for each segment that begins further than `limit` samples from the grid."""
    lapse = rows["start_ns"] - start_ns
    off = lapse * (rate / NS_PER_S) - _steps(lapse, rate)
    found = []
    for row in np.flatnonzero((np.abs(off) > limit) & (rows["first"] == 0)):
        time = spelled_time(int(rows["start_ns"][row]))
        where = f"{names[rows['channel'][row]]} {time} in {source.where(int(files[row]))}"
        fault = f"{off[row]:+.3f} samples off the grid of {rate:g} Hz"
        found.append(Fault("segment", where, fault, "placed on the nearest sample"))
    return found


def _axes(
    ids: Sequence[str],
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[tuple[str, ...], ...], dict[str, tuple[int, int]]]:
    """Stations, components, the channel of each pair, and the pair of each channel.

    Orientation codes 1, 2 and 3 take the places of N, E and Z at stations that have none of their own.
    """
    codes: dict[str, dict[str, str]] = {}
    for name in ids:
        network, station, location, channel = name.split(".")
        codes.setdefault(f"{network}.{station}.{location}.{channel[:-1]}", {})[channel[-1:] or "_"] = name
    slots = {
        station: {
            (ALIASES[code] if code in ALIASES and ALIASES[code] not in own else code): name
            for code, name in own.items()
        }
        for station, own in codes.items()
    }
    used = {code for own in slots.values() for code in own}
    usual = tuple(COMPONENTS) if used & set(COMPONENTS) else ()
    components = (*usual, *sorted(used - set(COMPONENTS)))
    stations = tuple(sorted(slots))
    channels = tuple(tuple(slots[station].get(code, "") for code in components) for station in stations)
    place = {name: (i, j) for i, row in enumerate(channels) for j, name in enumerate(row) if name}
    return stations, components, channels, place


def _dtype(kinds: set[int]) -> str:
    """What holds every sample exactly."""
    return {frozenset({INTEGER}): "int32", frozenset({SINGLE}): "float32", frozenset({DOUBLE}): "float64"}.get(
        frozenset(kinds), "float64"
    )


def _spelled(rate: float) -> str:
    return f"{rate:.6g}".replace(".", "_").replace("-", "m").replace("+", "")
