"""A catalogue out again: Parquet, CSV, or QuakeML that obspy and every FDSN tool reads."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import xarray as xr

from geobatch.errors import MismatchError, UsageError
from geobatch.formats.libraries import need
from geobatch.storage import absolute_url, open_storage, split_url
from geobatch.survey import open_survey, survey_info

BATCH = 2**16
XML_BATCH = 500
SUFFIXES = {".parquet": "parquet", ".csv": "csv", ".xml": "quakeml", ".quakeml": "quakeml", ".qml": "quakeml"}
# QuakeML identifiers take these characters only (QuakeML 1.2, section 3.1).
_NOT_IN_ID = re.compile(r"[^\w\-.*()+?~'=,;#/&]", re.ASCII)
_VALID_ID = re.compile(r"(smi|quakeml):[\w.\-]{2,}/[\w\-.*()+?~'=,;#/&]*", re.ASCII)


def export_catalogue(src_url: str, dst_url: str, *, overwrite: bool = False) -> dict[str, Any]:
    """What was written of the catalogue at `src_url`: URL, format, number of events.

    Args:
        src_url: A survey of kind catalogue.
        dst_url: The file; its suffix tells the format: .parquet, .csv, .xml, .quakeml or .qml.
        overwrite: Replace a file that is there.

    Raises:
        MismatchError: the survey is no catalogue.
        UsageError: the suffix is of no known format, or a file is there already.
    """
    dst_url = absolute_url(dst_url)
    suffix = PurePosixPath(dst_url).suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(
            "a catalogue is not written as that", where=dst_url, measured=suffix, limit=", ".join(SUFFIXES)
        )
    dataset = open_survey(src_url)
    info = survey_info(dataset, src_url)
    if info.get("kind") != "catalogue":
        raise MismatchError("survey is no catalogue", where=src_url, measured=f"kind {info.get('kind')}")
    root, name = split_url(dst_url)
    storage = open_storage(root)
    if storage.exists(name) and not overwrite:
        raise UsageError("a file is there already", where=dst_url, remedy="Give another one, or --overwrite.")
    writers: dict[str, Callable[[xr.Dataset, Callable[[bytes], None]], None]] = {
        "parquet": _write_parquet,
        "csv": _write_csv,
        "quakeml": _write_quakeml,
    }
    with storage.open_writer(name) as write:
        writers[SUFFIXES[suffix]](dataset, write)
    return {"url": dst_url, "format": SUFFIXES[suffix], "events": dataset.sizes["event"]}


def _batches(dataset: xr.Dataset, size: int) -> Iterator[dict[str, Any]]:
    """Columns of consecutive events, time first, as arrays in memory."""
    # Time is decoded to a coordinate or a variable, by how the data set is opened.
    names = ["time", *(str(name) for name in dataset.variables if name not in ("time", "event"))]
    for start in range(0, dataset.sizes["event"], size):
        part = dataset.isel(event=slice(start, start + size))
        yield {name: part[name].values for name in names}


def _tables(dataset: xr.Dataset) -> Iterator[Any]:
    import pyarrow as pa

    for batch in _batches(dataset, BATCH):
        arrays = {
            name: pa.array([str(word) for word in values]) if values.dtype.kind in "TOU" else pa.array(values)
            for name, values in batch.items()
        }
        yield pa.table(arrays)


def _write_parquet(dataset: xr.Dataset, write: Callable[[bytes], None]) -> None:
    import pyarrow.parquet

    sink = _Sink(write)
    writer = None
    try:
        for table in _tables(dataset):
            writer = writer or pyarrow.parquet.ParquetWriter(sink, table.schema, compression="zstd")
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def _write_csv(dataset: xr.Dataset, write: Callable[[bytes], None]) -> None:
    """Rows with a header; times in ISO 8601 with a Z, no value as an empty cell."""
    import csv

    header = True
    for batch in _batches(dataset, BATCH):
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        if header:
            rows.writerow(batch)
            header = False
        columns = [_printed(values) for values in batch.values()]
        rows.writerows(zip(*columns, strict=True))
        write(text.getvalue().encode())


def _printed(values: Any) -> list[str]:
    if values.dtype.kind == "M":
        return [f"{time}Z" for time in np.datetime_as_string(values.astype("datetime64[ns]"))]
    if values.dtype.kind == "f":
        return ["" if math.isnan(value) else repr(float(value)) for value in values]
    return [str(value) for value in values]


def _write_quakeml(dataset: xr.Dataset, write: Callable[[bytes], None]) -> None:
    """Batches of events written by obspy, put together under one root; times are rounded to microseconds by obspy."""
    etree = need("lxml.etree", "earthquake")
    event_module = need("obspy.core.event", "earthquake")
    opened = False
    seen: set[str] = set()
    first = 0
    for batch in _batches(dataset, XML_BATCH):
        count = len(batch["time"])
        events = [_event({k: v[row] for k, v in batch.items()}, first + row, seen) for row in range(count)]
        first += count
        catalogue = event_module.Catalog(events, resource_id=event_module.ResourceIdentifier("smi:local/geobatch"))
        buffer = io.BytesIO()
        catalogue.write(buffer, format="QUAKEML")
        body = buffer.getvalue()
        if not opened:
            head = body[: body.index(b"<event ")]
            write(head)
            opened = True
        root = etree.fromstring(body)
        for element in root.iter("{*}event"):
            write(etree.tostring(element))
    write(b"</eventParameters></q:quakeml>\n")


def _event(row: dict[str, Any], number: int, seen: set[str]) -> Any:
    """An obspy event; identifiers of the source are kept where they are valid and alone."""
    import obspy
    from obspy.core.event import Event, Magnitude, Origin, OriginQuality, QuantityError, ResourceIdentifier

    given = str(row.get("event_id", ""))
    name = given if _VALID_ID.fullmatch(given) else f"smi:local/event/{_NOT_IN_ID.sub('_', given) or number}"
    if name in seen:
        name = f"{name}/{number}"
    seen.add(name)

    def value(key: str) -> float | None:
        found = float(row.get(key, math.nan))
        return None if math.isnan(found) else found

    def error(key: str, scale: float = 1.0) -> Any:
        found = value(key)
        return QuantityError(uncertainty=None if found is None else found * scale)

    depth = value("depth_km")
    gap, rms = value("azimuthal_gap_deg"), value("rms_s")
    origin = Origin(
        resource_id=ResourceIdentifier(f"{name}/origin"),
        time=obspy.UTCDateTime(ns=int(row["time"].astype("datetime64[ns]").astype(np.int64))),
        time_errors=error("time_error_s"),
        latitude=value("latitude"),
        latitude_errors=error("latitude_error_deg"),
        longitude=value("longitude"),
        longitude_errors=error("longitude_error_deg"),
        depth=None if depth is None else round(depth * 1e3, 6),
        depth_errors=error("depth_error_km", 1e3),
    )
    if gap is not None or rms is not None:
        origin.quality = OriginQuality(azimuthal_gap=gap, standard_error=rms)
    event = Event(resource_id=ResourceIdentifier(name), origins=[origin], preferred_origin_id=origin.resource_id)
    try:
        event.event_type = str(row.get("event_type", "")) or None
    except ValueError:
        event.event_type = None  # Not one of QuakeML's words.
    magnitude = value("magnitude")
    if magnitude is not None:
        found = Magnitude(
            resource_id=ResourceIdentifier(f"{name}/magnitude"),
            mag=magnitude,
            mag_errors=error("magnitude_error"),
            magnitude_type=str(row.get("magnitude_type", "")) or None,
            origin_id=origin.resource_id,
        )
        event.magnitudes = [found]
        event.preferred_magnitude_id = found.resource_id
    return event


class _Sink(io.RawIOBase):
    """What pyarrow writes, passed on."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write, self._at = write, 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def write(self, data: Any) -> int:
        body = bytes(data)
        self._write(body)
        self._at += len(body)
        return len(body)
