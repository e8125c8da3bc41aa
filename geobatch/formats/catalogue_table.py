"""Earthquake catalogues as tables: which column is what, and words into times, places and magnitudes.

Known by their names: USGS (ComCat), ISC bulletin CSV, SCEDC-like aligned columns, FDSN text, and files with year,
month, day … in columns. The option `columns` maps anything else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from geobatch.errors import UsageError
from geobatch.formats.catalogue_events import NUMBERS, WORDS, Events, RowFaults, joined, sound_events
from geobatch.formats.libraries import need
from geobatch.formats.tables import TextTable, Words, find_column, numbers, open_table

NAMES: dict[str, tuple[str, ...]] = {
    "time": (
        "time",
        "origintime",
        "origin_time",
        "datetime",
        "date_time",
        "eventtime",
        "event_time",
        "time_utc",
        "utc",
    ),
    "date": ("date", "YYY/MM/DD", "YYYY/MM/DD", "origin_date", "ymd"),
    "clock": ("time", "HH:mm:SS.ss", "HHmmSSss", "origin_time", "hms"),
    "year": ("year", "yr", "yyyy"),
    "month": ("month", "mo", "mon"),
    "day": ("day", "dy", "dd"),
    "hour": ("hour", "hr", "hh"),
    "minute": ("minute", "min", "mi", "mn"),
    "second": ("second", "sec", "ss", "seconds"),
    "latitude": ("latitude", "lat", "origin_latitude", "evla"),
    "longitude": ("longitude", "lon", "long", "origin_longitude", "evlo"),
    "depth_km": ("depth", "depth_km", "depth/km", "dep", "z", "evdp", "depth_m"),
    "magnitude": ("magnitude", "mag", "prefmag", "ml", "mw", "md", "m"),
    "magnitude_type": ("magnitude_type", "magtype", "mag_type", "gt", "typemag"),
    "event_id": ("event_id", "eventid", "evid", "id", "cuspid", "index"),
    "event_type": ("event_type", "type", "et", "eventtype", "etype"),
    "time_error_s": ("time_error_s", "timeerror"),
    "depth_error_km": ("depth_error_km", "deptherror"),
    "magnitude_error": ("magnitude_error", "magerror"),
    "azimuthal_gap_deg": ("azimuthal_gap_deg", "gap", "azgap"),
    "rms_s": ("rms_s", "rms"),
}
CALENDAR = ("year", "month", "day", "hour", "minute", "second")
NAT = np.iinfo(np.int64).min
# Nanoseconds in 64 bits reach from 1678 to 2262.
FURTHEST_S = 9_214_646_400
METRES_LIMIT_KM = 800.0
# A second of 60 stands for a leap second, or for rounding up: both are the start of the next.
_SIXTY = re.compile(r"^(.*[:T ]\d{1,2}:\d{2}):60(\.\d+)?(.*)$")


def read_table(url: str, options: Any) -> Events:
    """The events of a table, rows without time or place left out.

    Args:
        url: The file.
        options: Those of the catalogue format.

    Raises:
        FormatError: it is no table with a header.
        UsageError: a column that is needed is missing.
    """
    mapped: Mapping[str, str] = options.columns
    wanted = [*mapped.values()] if mapped else [*NAMES["latitude"], *NAMES["longitude"]]
    table = open_table(url, wanted, options.delimiter)
    columns = _columns(table, mapped)
    faults = RowFaults(url)
    others = _others(table, columns, options)
    depth_column = columns.get("depth_km", "")
    metres = options.depth_unit == "m" or (options.depth_unit is None and _in_metres(depth_column))
    parts = []
    for row, block in table.blocks():
        parts.append(_block(block, row, columns, others, faults, url, 1e-3 if metres else 1.0))
    events = joined(parts) if parts else _nothing(url)
    events.source = url
    events = sound_events(events, faults)
    for name in list(events.numbers):
        if name not in NUMBERS and np.isnan(events.numbers[name]).all():
            del events.numbers[name]
    events.faults = [*table.faults, *faults.all()]
    deepest = np.nanmax(events.numbers["depth_km"], initial=-np.inf)
    if deepest > METRES_LIMIT_KM:
        events.warnings.append(f"depths reach {deepest:g} km: are they metres? --set depth_unit=m")
    return events


def _columns(table: TextTable, mapped: Mapping[str, str]) -> dict[str, str]:
    """Column per field, those of the user first.

    Raises:
        UsageError: a field is unknown, or a column that is needed is missing.
    """
    unknown = [name for name in mapped if name not in NAMES and name not in NUMBERS]
    if unknown:
        raise UsageError("no such field of a catalogue", measured=unknown[0], limit=", ".join(NAMES))
    found: dict[str, str] = {}
    for name, candidates in NAMES.items():
        column = find_column(table.names, (mapped[name],) if name in mapped else candidates)
        if column is not None:
            found[name] = column
        elif name in mapped:
            raise UsageError("no such column", where=table.url, measured=mapped[name], limit=", ".join(table.names))
    for name in ("latitude", "longitude"):
        if name not in found:
            _missing(table, name)
    parts = all(name in found for name in ("year", "month", "day")) or ("date" in found and "clock" in found)
    if parts and "time" not in mapped:
        found.pop("time", None)
    elif "time" not in found:
        _missing(table, "time, or date and time of day, or year, month and day")
    return found


def _missing(table: TextTable, name: str) -> None:
    raise UsageError(
        f"no column of {name}",
        where=table.url,
        measured=", ".join(table.names)[:300],
        remedy=f"Give --set columns.{name.split(',')[0]}=NAME.",
    )


def _others(table: TextTable, columns: Mapping[str, str], options: Any) -> dict[str, str]:
    """Further columns to keep, by the name of their variable: numbers besides the known ones."""
    used = set(columns.values())
    names = [name for name in table.names if name not in used] if options.keep is None else list(options.keep)
    others = {}
    for name in names:
        column = name if options.keep is None else find_column(table.names, [name])
        if column is None:
            raise UsageError("no such column", where=table.url, measured=name, limit=", ".join(table.names))
        variable = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lower()
        if variable and variable not in {*NUMBERS, *WORDS, "time", "event", "zarr"}:
            others[variable[:100]] = column
    return others


def _block(
    block: Mapping[str, Words],
    row: int,
    columns: Mapping[str, str],
    others: Mapping[str, str],
    faults: RowFaults,
    url: str,
    depth_scale: float,
) -> Events:
    """One block of rows."""
    count = len(next(iter(block.values())))
    places = np.arange(row, row + count)
    time_ns = _times(block, columns, places, faults)
    values: dict[str, npt.NDArray[np.float64]] = {}
    for name in NUMBERS:
        if name not in columns:
            if name in ("depth_km", "magnitude"):
                values[name] = np.full(count, np.nan)
            continue
        words = block[columns[name]]
        values[name], bad = numbers(words)
        if bad.any() and name not in ("latitude", "longitude"):
            ails = [f"{name} {word[:40]!r} is no number" for word in words[bad]]
            faults.add(places[bad], ails, f"{name} is no number", "cell left empty")
    values["depth_km"] = values["depth_km"] * depth_scale
    if others:
        # Together: of some thousand columns each call of its own would cost more than its words.
        together = numbers(np.concatenate([block[column] for column in others.values()]))[0]
        values |= dict(zip(others, together.reshape(len(others), count), strict=True))
    words_ = {name: block[columns[name]] for name in WORDS if name in columns}
    return Events(time_ns, values, words_, places, url)


def _times(
    block: Mapping[str, Words], columns: Mapping[str, str], places: npt.NDArray[Any], faults: RowFaults
) -> npt.NDArray[np.int64]:
    """Origin times in nanoseconds, `NAT` where there is none."""
    if "time" in columns:
        return parse_times(block[columns["time"]], places, faults)
    if "year" in columns:
        return _calendar_times(block, columns)
    joined_words = np.array(
        [f"{day} {clock}" for day, clock in zip(block[columns["date"]], block[columns["clock"]], strict=True)], object
    )
    return parse_times(joined_words, places, faults)


def parse_times(words: Words, places: npt.NDArray[Any], faults: RowFaults) -> npt.NDArray[np.int64]:
    """Nanoseconds since 1970 of ISO-like times, UTC unless they state an offset, or of epoch seconds; else `NAT`."""
    pandas = need("pandas", "earthquake")
    epoch = _epoch(words)
    if epoch is not None:
        return epoch
    tidy = np.array([word.replace("/", "-", 2) for word in words], object)
    times = pandas.to_datetime(pandas.Series(tidy, dtype=object), errors="coerce", format="ISO8601", utc=True)
    found = _nanoseconds(times)
    for position in np.flatnonzero(found == NAT):
        match = _SIXTY.match(tidy[position])
        if not match:
            continue
        again = f"{match.group(1)}:59{match.group(2) or ''}{match.group(3)}"
        value = _nanoseconds(pandas.to_datetime(pandas.Series([again]), errors="coerce", format="ISO8601", utc=True))[0]
        if value != NAT:
            found[position] = value + 10**9
            ails = f"second 60 in {words[position][:40]!r}"
            faults.add(places[position : position + 1], [ails], "second 60", "taken as the next second")
    return found


def _nanoseconds(times: Any) -> npt.NDArray[np.int64]:
    """Int64 nanoseconds of a pandas series; what lies beyond 1678 to 2262 cannot be held and is missing."""
    naive = np.array(times.dt.tz_convert(None).to_numpy())
    seconds = naive.astype("datetime64[s]").astype(np.int64)
    beyond = np.isnat(naive) | (np.abs(seconds) > FURTHEST_S)
    naive[beyond] = np.datetime64(0, "s")
    return np.where(beyond, NAT, naive.astype("datetime64[ns]").astype(np.int64))


def _epoch(words: Words) -> npt.NDArray[np.int64] | None:
    """Nanoseconds of words that are all seconds since 1970, exact to the last digit; None when they are not."""
    from decimal import Decimal, InvalidOperation

    given = [word for word in words if word]
    if not given or not all(re.fullmatch(r"-?\d{6,10}(\.\d*)?", word) for word in given[:100]):
        return None
    found = np.full(len(words), NAT)
    for position, word in enumerate(words):
        try:
            value = Decimal(word) if re.fullmatch(r"-?\d{1,10}(\.\d*)?", word) else None
        except InvalidOperation:
            value = None
        if value is not None and abs(value) < FURTHEST_S:
            found[position] = int(value * 10**9)
    return found


def _calendar_times(block: Mapping[str, Words], columns: Mapping[str, str]) -> npt.NDArray[np.int64]:
    """From year, month, day, and hour, minute, second where there are such columns."""
    count = len(block[columns["year"]])
    fields = {name: numbers(block[columns[name]])[0] if name in columns else np.zeros(count) for name in CALENDAR}
    limits = {
        "year": (1678, 2261),
        "month": (1, 12),
        "day": (1, 31),
        "hour": (0, 24),
        "minute": (0, 60),
        "second": (0, 61),
    }
    sound = np.ones(count, bool)
    with np.errstate(invalid="ignore"):
        for name, (low, high) in limits.items():
            sound &= (fields[name] >= low) & (fields[name] <= high)
            if name != "second":
                sound &= fields[name] == np.floor(fields[name])
    whole = {name: np.where(sound, values, 1).astype(np.int64) for name, values in fields.items()}
    months = (whole["year"] - 1970) * 12 + whole["month"] - 1
    days = months.astype("datetime64[M]").astype("datetime64[D]")
    date = days + (whole["day"] - 1)
    sound &= date.astype("datetime64[M]") == days.astype("datetime64[M]")
    seconds = date.astype("datetime64[s]").astype(np.int64) + whole["hour"] * 3600 + whole["minute"] * 60
    # Seconds are printed with few digits: the nearest microsecond is what was meant.
    micro = np.rint(np.where(sound, fields["second"], 0.0) * 1e6).astype(np.int64)
    return np.where(sound, seconds * 10**9 + micro * 1000, NAT)


def _in_metres(column: str) -> bool:
    return bool(re.search(r"(_m|\(m\)|\[m\]|metres|meters)$", column.strip().lower()))


def _nothing(url: str) -> Events:
    values = {name: np.zeros(0) for name in ("latitude", "longitude", "depth_km", "magnitude")}
    return Events(np.zeros(0, np.int64), values, {}, np.zeros(0, np.int64), url)
