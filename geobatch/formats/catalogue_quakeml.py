"""QuakeML (Schorlemmer et al. 2011) into events: obspy reads one event at a time, so that memory stays small.

The document is walked by lxml without network, without entities and without a DTD; what declares one is refused.
"""

from __future__ import annotations

import io
import math
import warnings
import xml.parsers.expat
from collections.abc import Iterator
from typing import Any

import numpy as np

from geobatch.errors import FormatError
from geobatch.formats.catalogue_events import NUMBERS, WORDS, Events, RowFaults, sound_events
from geobatch.formats.catalogue_table import FURTHEST_S, NAT
from geobatch.formats.libraries import need
from geobatch.formats.tables import open_object

_HEAD = (
    b"<?xml version='1.0' encoding='utf-8'?><q:quakeml xmlns:q='http://quakeml.org/xmlns/quakeml/1.2' "
    b"xmlns='http://quakeml.org/xmlns/bed/1.2'><eventParameters publicID='smi:local/events'>"
)
_TAIL = b"</eventParameters></q:quakeml>"
PIECE_BYTES = 2**16
MOST_HEAD = 2**20
# Counted as they begin and as they end.
MOST_ELEMENTS = 2**20
KM_PER_M = 1e-3


def read_quakeml(url: str) -> Events:
    """The events of a QuakeML file: preferred origin and magnitude of each, the first where none is preferred.

    Raises:
        FormatError: it is no QuakeML, is cut off, or declares a document type or entities.
    """
    refuse_entities(url)
    etree = need("lxml.etree", "earthquake")
    obspy = need("obspy", "earthquake")
    faults = RowFaults(url, "event")
    rows: list[dict[str, Any]] = []
    left_behind = 0
    with open_object(url) as stream:
        safe = {"resolve_entities": False, "no_network": True, "load_dtd": False, "huge_tree": False}
        try:
            for number, element in enumerate(_elements(etree, stream, url, safe), 1):
                try:
                    # What obspy warns of ends in an empty cell or a fault.
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        event = _read_event(obspy, etree, element)
                    row = _row(event)
                except Exception as error:  # obspy raises many kinds on what it does not expect.
                    ails = f"{type(error).__name__}: {str(error)[:80]}"
                    faults.add(np.array([number]), [ails], "event does not read", "left out")
                    continue
                left_behind += bool(event.picks)
                rows.append({"place": number, **row})
        except etree.XMLSyntaxError as error:
            raise FormatError("XML is not well-formed or cut off", where=url, measured=str(error)[:200]) from error
    events = _events(rows, url)
    events = sound_events(events, faults)
    events.faults = faults.all()
    if left_behind:
        events.warnings.append(f"picks of {left_behind} events are not kept in the catalogue")
    return events


def refuse_entities(url: str) -> None:
    """Walk the document's head without expanding anything.

    Raises:
        FormatError: it is no QuakeML, or declares a document type, in which entities could grow or fetch.
    """
    parser = xml.parsers.expat.ParserCreate(namespace_separator=" ")
    root: list[str] = []

    def doctype(*_: Any) -> None:
        raise FormatError(
            "document type declaration in QuakeML is refused",
            where=url,
            measured="<!DOCTYPE",
            limit="none: entities could expand without bound or fetch from elsewhere",
        )

    def started(name: str, _: Any) -> None:
        root.append(name)

    parser.StartDoctypeDeclHandler = doctype
    parser.StartElementHandler = started
    with open_object(url) as stream:
        while not root:
            if stream.tell() > MOST_HEAD:
                raise FormatError(
                    "file is no XML", where=url, measured=f"no element in {MOST_HEAD} bytes", limit="QuakeML"
                )
            piece = stream.read(PIECE_BYTES)
            try:
                parser.Parse(piece, not piece)
            except xml.parsers.expat.ExpatError as error:
                # The rest of the document is judged event by event.
                if root:
                    break
                raise FormatError("file is no XML", where=url, measured=str(error), limit="QuakeML") from error
    space, _, name = root[0].rpartition(" ")
    if name != "quakeml" or "quakeml" not in space:
        raise FormatError("XML is no QuakeML", where=url, measured=f"root element {root[0][:80]}", limit="q:quakeml")


def _read_event(obspy: Any, etree: Any, element: Any) -> Any:
    """One event as obspy reads it, in a document of its own."""
    return obspy.read_events(io.BytesIO(_HEAD + etree.tostring(element) + _TAIL), format="QUAKEML")[0]


def _elements(etree: Any, stream: Any, url: str, safe: dict[str, bool]) -> Iterator[Any]:
    """The event elements, each freed after its use; what stands between them is freed as it is met.

    Raises:
        FormatError: an event has more elements than any has: all of them would be in memory.
    """
    event, count = None, 0
    for action, element in etree.iterparse(stream, events=("start", "end"), **safe):
        if event is not None:
            count += 1
            if count > MOST_ELEMENTS:
                raise FormatError("event is too large", where=url, measured=f"{count} elements", limit=MOST_ELEMENTS)
            if element is not event:
                continue
            yield element
            event = None
        parent = element.getparent()
        if parent is None:
            continue
        if action == "end":
            parent.remove(element)
        elif element.tag.endswith("}event") and parent.tag.endswith("}eventParameters"):
            event, count = element, 0


def _row(event: Any) -> dict[str, Any]:
    """What the catalogue keeps of an obspy event."""
    origin = event.preferred_origin() or (event.origins[0] if event.origins else None)
    magnitude = event.preferred_magnitude() or (event.magnitudes[0] if event.magnitudes else None)
    row: dict[str, Any] = {"time": NAT, "event_id": str(event.resource_id.id), "event_type": event.event_type or ""}
    if origin is not None:
        quality = origin.quality
        row |= {
            "time": _nanoseconds(origin.time),
            "latitude": origin.latitude,
            "longitude": origin.longitude,
            "depth_km": _scaled(origin.depth, KM_PER_M),
            "time_error_s": _uncertainty(origin.time_errors),
            "latitude_error_deg": _uncertainty(origin.latitude_errors),
            "longitude_error_deg": _uncertainty(origin.longitude_errors),
            "depth_error_km": _scaled(_uncertainty(origin.depth_errors), KM_PER_M),
            "azimuthal_gap_deg": quality.azimuthal_gap if quality else None,
            "rms_s": quality.standard_error if quality else None,
        }
    if magnitude is not None:
        row |= {
            "magnitude": magnitude.mag,
            "magnitude_type": magnitude.magnitude_type or "",
            "magnitude_error": _uncertainty(magnitude.mag_errors),
        }
    return row


def _nanoseconds(time: Any) -> int:
    """Nanoseconds since 1970, missing where 64 bits cannot hold them."""
    return NAT if time is None or abs(time._ns) > FURTHEST_S * 10**9 else int(time._ns)


def _uncertainty(errors: Any) -> float | None:
    """What obspy keeps beside a value; nothing at all where the value is missing."""
    return None if errors is None else errors.uncertainty


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _events(rows: list[dict[str, Any]], url: str) -> Events:
    def numbers(name: str) -> Any:
        found = [row.get(name) for row in rows]
        return np.array([math.nan if value is None else float(value) for value in found], np.float64)

    columns = {name: numbers(name) for name in NUMBERS}
    needed = ("latitude", "longitude", "depth_km", "magnitude")
    return Events(
        np.array([row["time"] for row in rows], np.int64),
        {name: column for name, column in columns.items() if name in needed or np.isfinite(column).any()},
        {name: np.array([str(row.get(name, "")) for row in rows], object) for name in WORDS},
        np.array([row["place"] for row in rows], np.int64),
        url,
    )
