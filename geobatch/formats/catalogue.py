"""Earthquake catalogues, tables or QuakeML, into a survey of events sorted by time.

A catalogue is sorted as a whole, so it is held in memory once, as columns: about 100 bytes an event. Reading is block
by block, writing shard by shard.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr
from pydantic import Field

from geobatch.errors import DataError, FormatError
from geobatch.formats.catalogue_events import (
    NUMBERS,
    TIME_UNITS,
    WORDS,
    Events,
    RowFaults,
    duplicates,
    joined,
)
from geobatch.formats.catalogue_quakeml import read_quakeml
from geobatch.formats.catalogue_table import read_table
from geobatch.formats.ingestion import Fault, Written, ingesting, store_shard
from geobatch.formats.spec import IngestOptions, IngestRun, Inspected
from geobatch.formats.tables import list_sources, open_object
from geobatch.moments import figures, partial_moments
from geobatch.shards import ArraySpec
from geobatch.storage import absolute_url, split_url
from geobatch.survey import COMPLETE, SCHEMA

# Version of everything in the readers that decides a value or the order of events.
NUMERICAL_VERSION = 1
SUFFIXES = (".csv", ".txt", ".tsv", ".xml", ".quakeml", ".qml", ".catalog")
CHUNK, SHARD = 2**16, 2**20
TASK_BYTES = 64 * SHARD


class Options(IngestOptions):
    """Options of catalogues.

    Attributes:
        columns: Column per field where its name does not tell, such as `{magnitude: ML, time: OT}`.
        depth_unit: `km` or `m`; km in tables when their header does not say, always m in QuakeML.
        magnitude_type: Type of magnitudes whose source gives none.
        duplicates: `keep` or `drop` events with the time and place, or the identifier, of another.
        keep: Further columns of numbers to keep; all when not given.
        delimiter: Between columns, found when not given; a blank stands for any white space.
    """

    columns: dict[str, str] = Field(default={})
    depth_unit: Literal["km", "m"] | None = None
    magnitude_type: str = ""
    duplicates: Literal["keep", "drop"] = "keep"
    keep: tuple[str, ...] | None = None
    delimiter: str | None = None


@dataclass(frozen=True)
class Column:
    """One array of the survey, as it is written."""

    spec: ArraySpec
    values: npt.NDArray[Any]


def ingest_source(src_url: str, dst_url: str, options: Options, run: IngestRun) -> dict[str, Any]:
    """The summary of the catalogue written to `dst_url` from a table or QuakeML file, or a folder of them.

    Raises:
        NotFoundError: nothing is there.
        FormatError: a file is no table and no QuakeML, or holds no event.
        UsageError: a column that is needed is missing.
    """
    dst_url = absolute_url(dst_url)
    sources = list_sources(src_url, SUFFIXES)
    versions = [(url, version) for url, _, version in sources]
    decisive = {
        "format": "catalogue",
        "numerical_version": NUMERICAL_VERSION,
        "sources": [list(source) for source in sources],
        "options": options.decisive(),
    }
    with ingesting(dst_url, decisive, overwrite=run.overwrite, sources=versions) as work:
        if work.done is not None:
            run.on_progress(len(sources), len(sources))
            return {"url": dst_url, **work.done}
        events = read_events(sources, options, run.on_progress)
        columns = columns_of(events)
        specs = [column.spec for column in columns]
        work.report(events.faults)
        work.create(specs, {})
        count = -(-len(events) // SHARD)
        pieces = list(range(count))
        work.write(
            functools.partial(_write_shard, url=dst_url, columns=columns), pieces, fanout=_here, task_bytes=TASK_BYTES
        )
        info = _describe(events, sources, options, work.digests())
        info = work.finish(specs, info)
    return {"url": dst_url, "events": len(events), **info}


def inspect_source(src_url: str, options: Options) -> Inspected:
    """What a catalogue holds and what is suspicious about it."""
    from geobatch.formats.catalogue_inspect import inspect_events

    sources = list_sources(src_url, SUFFIXES)
    events = read_events(sources, options, lambda done, total: None)
    told = inspect_events(events.time_ns, {**events.numbers, **events.words}, src_url)
    told["suspicious"] += [*events.warnings, *(f"{f.where}: {f.fault} ({f.action})" for f in events.faults[:50])]
    columns = {column.spec.name: column.values for column in columns_of(events)}
    columns["time"] = events.time_ns.astype("datetime64[ns]")
    return Inspected(told, xr.Dataset({name: ("event", values) for name, values in columns.items()}))


def read_events(
    sources: Sequence[tuple[str, int, str]], options: Options, on_progress: Callable[[int, int], None]
) -> Events:
    """All events of the files, sorted by time, with duplicates told or dropped.

    Raises:
        FormatError: a single file does not read, or there is no event.
    """
    parts, failed = [], []
    for number, (url, size, _) in enumerate(sources, 1):
        try:
            if not size:
                raise FormatError("file is empty", where=url, measured="0 bytes")
            parts.append(read_quakeml(url) if _is_xml(url) else read_table(url, options))
        except DataError as error:
            if len(sources) == 1:
                raise
            failed.append(Fault("file", url, f"{error.what}; {error.measured}".strip("; "), "left out"))
        on_progress(number, len(sources))
    if not any(len(part) for part in parts):
        told = [fault for part in parts for fault in part.faults] + failed
        raise FormatError(
            "no event in the catalogue",
            where=sources[0][0],
            measured=f"{len(told)} faults, such as: {told[0].fault}" if told else "no rows",
        )
    events = joined(parts)
    events.faults = events.faults + failed
    if options.magnitude_type:
        own = events.words.get("magnitude_type", np.full(len(events), "", object))
        known = np.isfinite(events.numbers["magnitude"]) & (own == "")
        events.words["magnitude_type"] = np.where(known, options.magnitude_type, own)
    events = events.take(np.argsort(events.time_ns, kind="stable"))
    return _told_duplicates(events, options)


def columns_of(events: Events) -> list[Column]:
    """The arrays of the survey, time first."""
    count = len(events)
    chunk = min(CHUNK, count)
    shard = chunk * -(-min(SHARD, count) // chunk)

    def column(name: str, values: npt.NDArray[Any], dtype: str, fill: Any, **attributes: Any) -> Column:
        return Column(ArraySpec(name, ("event",), (count,), dtype, (chunk,), (shard,), fill, attributes), values)

    calendar = {"units": TIME_UNITS, "calendar": "proleptic_gregorian", "standard_name": "time"}
    found = [column("time", events.time_ns, "int64", 0, long_name="origin time, UTC", **calendar)]
    for name, values in events.numbers.items():
        about, units = NUMBERS.get(name, (name, ""))
        extra = {"positive": "down"} if name == "depth_km" else {}
        found.append(column(name, values, "float64", math.nan, long_name=about, units=units, **extra))
    for name, words in events.words.items():
        if any(words):
            text = words.astype(str).astype(np.dtypes.StringDType())
            found.append(column(name, text, "T", "", long_name=WORDS[name]))
    return found


def _here(function: Callable[[Any], Any], items: Sequence[Any], task_bytes: int) -> Iterator[tuple[int, Any]]:
    """Every item in this process, which holds the columns."""
    for position, item in enumerate(items):
        yield position, function(item)


def _write_shard(number: int, url: str, columns: Sequence[Column]) -> Written:
    stored = []
    for column in columns:
        shard = column.spec.shards[0]
        stored.append(store_shard(url, column.spec, (number,), column.values[number * shard : (number + 1) * shard]))
    return Written(tuple(stored))


def _told_duplicates(events: Events, options: Options) -> Events:
    same = duplicates(events)
    if not same.any():
        return events
    action = "left out" if options.duplicates == "drop" else "kept"
    faults = RowFaults(events.source, "event")
    rows = np.flatnonzero(same)
    when = events.time_ns[rows].astype("datetime64[ns]").astype("datetime64[ms]")
    faults.add(events.places[rows], [f"duplicate of an event at {time}" for time in when], "duplicates", action)
    events.faults = [*events.faults, *faults.all()]
    events.warnings = [*events.warnings, f"{rows.size} duplicate events were {action}"]
    return events.take(np.flatnonzero(~same)) if options.duplicates == "drop" else events


def _is_xml(url: str) -> bool:
    with open_object(url, 4096) as stream:
        head = stream.read(4096)
    for encoding, mark in (("utf-16-le", b"\xff\xfe"), ("utf-16-be", b"\xfe\xff")):
        if head.startswith(mark):
            head = head[2:].decode(encoding, errors="replace").encode()
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<")


def _describe(
    events: Events, sources: Sequence[tuple[str, int, str]], options: Options, digests: list[str]
) -> dict[str, Any]:
    """The `geobatch` attribute of the survey."""
    whole = hashlib.sha256(f"geobatch catalogue {NUMERICAL_VERSION}".encode())
    for digest in digests:
        whole.update(digest.encode())
    one = len(sources) == 1
    versions = hashlib.sha256("\n".join(version for _, _, version in sources).encode()).hexdigest()
    times = events.time_ns[[0, -1]].astype("datetime64[ns]")
    warnings = list(events.warnings)
    if not np.isfinite(events.numbers["magnitude"]).all():
        warnings.append(f"{int(np.isnan(events.numbers['magnitude']).sum())} events have no magnitude")
    return {
        "schema": SCHEMA,
        "kind": "catalogue",
        "variable": "magnitude",
        "quantity": "earthquakes",
        "crs": options.crs or "EPSG:4326",
        "statistics": {
            name: figures(partial_moments(values.astype(np.float32)))
            for name, values in events.numbers.items()
            if np.isfinite(values).any()
        },
        "events": len(events),
        "start_time": str(times[0]),
        "end_time": str(times[1]),
        "source": {
            "url": sources[0][0] if one else split_url(sources[0][0])[0],
            "size_bytes": sum(size for _, size, _ in sources),
            "version": sources[0][2] if one else versions,
            "files": len(sources),
        },
        "warnings": warnings,
        "numerical_version": NUMERICAL_VERSION,
        "identity": whole.hexdigest(),
        "state": COMPLETE,
        **({"attribution": options.attribution} if options.attribution else {}),
    }
