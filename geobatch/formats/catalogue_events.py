"""Earthquakes as columns: what a catalogue holds of each event, how readers hand it over, what makes it one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from geobatch.formats.ingestion import Fault

FAULT_LIMIT = 1000
NUMBERS: dict[str, tuple[str, str]] = {
    "latitude": ("latitude", "degrees_north"),
    "longitude": ("longitude", "degrees_east"),
    "depth_km": ("depth below sea level", "km"),
    "magnitude": ("magnitude", "1"),
    "time_error_s": ("standard error of the origin time", "s"),
    "latitude_error_deg": ("standard error of the latitude", "degrees"),
    "longitude_error_deg": ("standard error of the longitude", "degrees"),
    "depth_error_km": ("standard error of the depth", "km"),
    "magnitude_error": ("standard error of the magnitude", "1"),
    "azimuthal_gap_deg": ("largest azimuth between neighbouring stations", "degrees"),
    "rms_s": ("root mean square of travel-time residuals", "s"),
}
REQUIRED = ("latitude", "longitude", "depth_km", "magnitude")
WORDS: dict[str, str] = {
    "event_id": "identifier of the event in its source",
    "magnitude_type": "type of the magnitude",
    "event_type": "type of the event",
}
TIME_UNITS = "nanoseconds since 1970-01-01"


@dataclass
class Events:
    """Events in the order of their source, one entry per event in every column.

    Attributes:
        time_ns: Origin time, UTC, int64 nanoseconds since 1970-01-01 without leap seconds.
        numbers: Columns of `NUMBERS` and further ones, float64, NaN where there is none.
        words: Columns of `WORDS`, text, empty where there is none.
        places: Where each event stands in its source, such as a row number.
        source: URL of the file.
        faults: What was wrong with rows.
        warnings: What a user should know.
    """

    time_ns: npt.NDArray[np.int64]
    numbers: dict[str, npt.NDArray[np.float64]]
    words: dict[str, npt.NDArray[np.object_]]
    places: npt.NDArray[np.int64]
    source: str
    faults: list[Fault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return int(self.time_ns.size)

    def take(self, rows: npt.NDArray[Any]) -> Events:
        """The events at these positions."""
        return Events(
            self.time_ns[rows],
            {name: column[rows] for name, column in self.numbers.items()},
            {name: column[rows] for name, column in self.words.items()},
            self.places[rows],
            self.source,
            self.faults,
            self.warnings,
        )


@dataclass
class RowFaults:
    """Faults of rows of one source: all are counted, the first are told one by one.

    Attributes:
        source: URL of the file.
        what: What they are, `row` or `event`.
        told: The faults so far.
    """

    source: str
    what: str = "row"
    told: list[Fault] = field(default_factory=list)
    counts: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, rows: npt.NDArray[Any], ails: Sequence[str], kind: str, action: str) -> None:
        """These rows, with what ails each."""
        key = (kind, action)
        before = self.counts.get(key, 0)
        self.counts[key] = before + len(rows)
        for row, sentence in list(zip(rows, ails, strict=True))[: max(0, FAULT_LIMIT - before)]:
            self.told.append(Fault(self.what, f"{self.source} {self.what} {row}", sentence, action))

    def all(self) -> list[Fault]:
        """The faults, with one for all of a kind beyond the limit."""
        rest = [
            Fault(self.what, f"{self.source} further {count - FAULT_LIMIT} {self.what}s", kind, action)
            for (kind, action), count in self.counts.items()
            if count > FAULT_LIMIT
        ]
        return self.told + rest


def sound_events(events: Events, faults: RowFaults) -> Events:
    """The events with a time and a place on Earth, longitudes in [-180, 180); the others are faults.

    Args:
        events: As read; a missing time is NaT, the least int64.
        faults: Takes what is left out.
    """
    no_time = events.time_ns == np.iinfo(np.int64).min
    latitude, longitude = events.numbers["latitude"], events.numbers["longitude"]
    with np.errstate(invalid="ignore"):
        off = ~(np.abs(latitude) <= 90) | ~((longitude >= -180) & (longitude <= 360))
    off &= ~no_time
    faults.add(events.places[no_time], ["no origin time"] * int(no_time.sum()), "no origin time", "left out")
    ails = [f"latitude {a:g}, longitude {b:g}" for a, b in zip(latitude[off], longitude[off], strict=True)]
    faults.add(events.places[off], ails, "no place on Earth", "left out")
    kept = events.take(np.flatnonzero(~(no_time | off)))
    east = kept.numbers["longitude"]
    wrapped = east >= 180
    if wrapped.any():
        kept.numbers["longitude"] = np.where(wrapped, east - 360, east)
        if (east > 180).any():
            kept.warnings.append(f"{int((east > 180).sum())} longitudes above 180 degrees were given 360 less")
    return kept


def joined(parts: Sequence[Events]) -> Events:
    """Several sources as one table; a column that one lacks is empty there."""
    if len(parts) == 1:
        return parts[0]
    numbers = dict.fromkeys(name for part in parts for name in part.numbers)
    words = dict.fromkeys(name for part in parts for name in part.words)
    return Events(
        np.concatenate([part.time_ns for part in parts]),
        {
            name: np.concatenate([part.numbers.get(name, np.full(len(part), np.nan)) for part in parts])
            for name in numbers
        },
        {
            name: np.concatenate([part.words.get(name, np.full(len(part), "", object)) for part in parts])
            for name in words
        },
        np.concatenate([part.places for part in parts]),
        parts[0].source,
        [fault for part in parts for fault in part.faults],
        [warning for part in parts for warning in part.warnings],
    )


def duplicates(events: Events) -> npt.NDArray[np.bool_]:
    """True for each event with the time and place, or the identifier, of one before it; events sorted by time."""
    same = np.zeros(len(events), bool)
    key = np.stack([events.time_ns.view(np.float64), events.numbers["latitude"], events.numbers["longitude"]], axis=1)
    order = np.lexsort((np.arange(len(events)), key[:, 2], key[:, 1], events.time_ns))
    equal = (np.diff(events.time_ns[order]) == 0) & (np.diff(key[order][:, 1:], axis=0) == 0).all(axis=1)
    same[order[1:][equal]] = True
    seen: set[str] = set()
    for position, name in enumerate(events.words.get("event_id", ())):
        if name and name in seen:
            same[position] = True
        seen.add(name)
    return same
