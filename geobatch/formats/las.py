"""LAS 1.2 and 2.0 well logs (CWLS): one file, or a folder of them, into a survey of wells `(well, depth)`.

The header is lasio's work; the rows are read here, since a bad one must not cost the others and a file must not take
many times its size in memory. LAS 3 is refused by name.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import re
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from geobatch.errors import FormatError, UsageError
from geobatch.formats.ingestion import Fault
from geobatch.formats.las_data import read_rows
from geobatch.formats.libraries import need
from geobatch.formats.logs_curves import factor, unit_of
from geobatch.formats.logs_ingest import LogOptions, ingest_logs
from geobatch.formats.logs_inspect import inspect_logs
from geobatch.formats.logs_well import Track, Well, first_value, increasing, native_grid
from geobatch.formats.spec import IngestRun, Inspected
from geobatch.formats.tables import list_sources
from geobatch.storage import open_storage, split_url

SUFFIXES = (".las",)
MOST_BYTES = 2**30
MOST_HEADER = 2**20
MOST_CURVES = 2000
# LAS 2.0 allows 256 characters; longer ones are cut so that no pattern runs long over them.
HEADER_LINE = 256
_SECTION = re.compile(r"^[ \t]*~[ \t]*(\w?)[^\n]*", re.MULTILINE)
_ELEVATION = re.compile(r"^\s*(EKB|KB|EREF|ELEV_KB)\s*\.(\S*)\s+(-?\d+(?:\.\d+)?)\s*:", re.MULTILINE | re.IGNORECASE)
_X = ("X", "XCOORD", "X_LOC", "XLOC", "EASTING", "XWELL", "SURFX", "UTMX")
_Y = ("Y", "YCOORD", "Y_LOC", "YLOC", "NORTHING", "YWELL", "SURFY", "UTMY")


class Options(LogOptions):
    """Options of LAS; those of all well logs."""


@dataclass(frozen=True)
class Header:
    """What stands before the data.

    Attributes:
        items: Value per mnemonic of ~W, upper case.
        units: Unit per mnemonic of ~W, upper case.
        curves: Mnemonic and unit of each curve, the index first.
        wrapped: A row takes several lines.
        elevation_m: Kelly bushing, NaN when not given.
        unread: Lines that do not read.
    """

    items: dict[str, str]
    units: dict[str, str]
    curves: list[tuple[str, str]]
    wrapped: bool
    elevation_m: float
    unread: tuple[str, ...] = ()


def ingest_source(src_url: str, dst_url: str, options: Options, run: IngestRun) -> dict[str, Any]:
    """The summary of the survey of wells written to `dst_url` from a LAS file or a folder of them.

    Raises:
        NotFoundError: nothing is there.
        FormatError: no file can be read; a bad one among others stands in the quality table.
        UsageError: units of depth are not stated, or the common depth axis would be absurd.
    """
    return ingest_logs("las", src_url, dst_url, SUFFIXES, partial(read_las, options=options), options, run)


def inspect_source(src_url: str, options: Options) -> Inspected:
    """What a LAS file or a folder of them holds and what is suspicious about it."""
    return inspect_logs(list_sources(src_url, SUFFIXES), partial(read_las, options=options), options, src_url)


def read_las(url: str, options: LogOptions) -> tuple[list[Well], list[Fault]]:
    """The well in a LAS file, and what was wrong with its parts.

    Raises:
        FormatError: it is no LAS 1.2 or 2.0, or has no curves, no ~A section, or no row with a depth.
        UsageError: it does not say in which unit depths are, or is larger than a well log can be.
    """
    root, name = split_url(url)
    storage = open_storage(root)
    size = storage.size(name)
    if not size:
        raise FormatError("file is empty", where=url, measured="0 bytes")
    if size > MOST_BYTES:
        raise UsageError("file is too large for one well", where=url, measured=size, limit=MOST_BYTES)
    text, faults = decode(storage.get(name), url)
    data = _data_section(text, url)
    header = read_header(text[: data.start()], url)
    columns = len(header.curves)
    null = header.items.get("NULL", "")
    first_line = text.count("\n", 0, data.end()) + 2
    table = read_rows(text, data.end() + 1, first_line, header.wrapped, null, columns, url)
    text = ""
    curves = header.curves[: table.rows.shape[1]]
    faults += [Fault("header line", f"{url} {line}", "does not read", "left out") for line in header.unread]
    faults += table.faults + _column_faults(header.curves, table.rows.shape[1], url)
    rows = table.rows[:, : len(curves)]
    _empty_sentinels(rows, null, options)
    depth, rows, more = increasing(
        rows[:, 0] * depth_factor(header, float(rows[0, 0]), options, url), rows[:, 1:], table.lines, url
    )
    faults += more
    tracks = tuple(
        Track(curve, unit_of(unit), np.ascontiguousarray(rows[:, k])) for k, (curve, unit) in enumerate(curves[1:])
    )
    if not tracks:
        raise FormatError("no curves but the index", where=url, measured=header.curves[0][0], limit="at least one")
    return [_well(url, header, depth, tracks, faults)], faults


def decode(body: bytes, where: str) -> tuple[str, list[Fault]]:
    """The text of a file: UTF-8, UTF-16 by its mark, else Windows-1252, which is told.

    Raises:
        FormatError: it is binary.
    """
    faults: list[Fault] = []
    if body[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = body.decode("utf-16", errors="replace")
    elif body.count(b"\0", 0, 4096):
        raise FormatError("file is binary", where=where, measured=f"starts with {body[:8].hex()}", limit="text")
    else:
        try:
            text = body.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            text = body.decode("cp1252", errors="replace")
            ails = f"byte {body[error.start]:#x} at {error.start} is not UTF-8"
            faults = [Fault("file", where, ails, "read as Windows-1252")]
    return text.replace("\r\n", "\n").replace("\r", "\n"), faults


def read_header(text: str, where: str) -> Header:
    """The header, from the text before ~A.

    Raises:
        FormatError: sections are missing or do not read, or it is LAS 3.
    """
    if len(text) > MOST_HEADER:
        raise FormatError("header is too long", where=where, measured=f"{len(text)} characters", limit=MOST_HEADER)
    sections: dict[str, str] = {}
    matches = list(_SECTION.finditer(text))
    for number, match in enumerate(matches, 1):
        end = matches[number].start() if number < len(matches) else len(text)
        sections.setdefault(match.group(1).upper(), text[match.end() : end])
    for letter, what in (("V", "~Version"), ("W", "~Well"), ("C", "~Curve")):
        if letter not in sections:
            raise FormatError(f"no {what} section", where=where, limit="LAS 1.2 or 2.0", remedy="Is it a LAS file?")
    if re.search(r"^\s*VERS\s*\.[^\n:]*\b3", sections["V"], re.MULTILINE | re.IGNORECASE):
        raise FormatError(
            "LAS 3 is not read", where=where, measured="VERS 3", limit="1.2 or 2.0", remedy="Export the well as LAS 2."
        )
    las, unread = _lasio_sections(sections, where)
    return _header(sections, las, where, unread)


def depth_factor(header: Header, first: float, options: LogOptions, where: str) -> float:
    """What converts the index to metres.

    Raises:
        FormatError: the index is no depth.
        UsageError: its unit is unknown, or the file contradicts itself.
    """
    name, unit = header.curves[0]
    told = {unit_of(unit), unit_of(header.units.get("STRT", ""))} - {""}
    if options.depth_unit:
        told = {options.depth_unit}
    if told & {"s", "S", "ms", "MS", "sec", "SEC"} or name.upper() == "TIME":
        raise FormatError("index is time", where=where, measured=f"{name} in {unit}", limit="depth in m or ft")
    factors = {factor(one, "m") for one in told}
    if len(told) != 1 or None in factors:
        raise UsageError(
            "unit of depth is not stated" if not told else "unit of depth is not certain",
            where=where,
            measured=", ".join(sorted(told)) or "no unit of index or STRT",
            limit="m or ft",
            remedy="Give --set depth_unit=m or ft.",
        )
    return float(factors.pop() or 1.0)


def _data_section(text: str, where: str) -> re.Match[str]:
    for match in _SECTION.finditer(text):
        if match.group(1).upper() == "A":
            return match
    raise FormatError(
        "no ~A section",
        where=where,
        measured=f"sections {', '.join(m.group(0).strip()[:20] for m in _SECTION.finditer(text[:MOST_HEADER]))}"[:200],
        limit="~V, ~W, ~C and ~A",
        remedy="Is it a LAS file?",
    )


def _lasio_sections(sections: dict[str, str], where: str) -> tuple[Any, tuple[str, ...]]:
    """~V, ~W and ~C as lasio reads them, and what it says of lines that it cannot read."""
    lasio = need("lasio", "subsurface")
    lines = []
    for letter, title in (("V", "~Version"), ("W", "~Well"), ("C", "~Curve")):
        section = [line[:HEADER_LINE] for line in sections[letter].split("\n")]
        declared = sum(1 for line in section if line.strip() and not line.lstrip().startswith("#"))
        if declared > MOST_CURVES:
            # lasio looks at every line for each of them.
            what = "curves" if letter == "C" else f"lines in {title}"
            raise FormatError(f"too many {what}", where=where, measured=declared, limit=MOST_CURVES)
        lines += [title, *section]
    unread = _Heard()
    logger = logging.getLogger("lasio.reader")
    logger.addHandler(unread)
    propagate, logger.propagate = logger.propagate, False
    try:
        # An open stream: lasio takes a string for a path or an address.
        stream = io.StringIO("\n".join([*lines, "~A", ""]))
        las = lasio.read(stream, ignore_data=True, ignore_header_errors=True, mnemonic_case="preserve")
    except Exception as error:  # lasio lets through whatever its parsing meets.
        raise FormatError("header does not read", where=where, measured=str(error)[:200]) from error
    finally:
        logger.removeHandler(unread)
        logger.propagate = propagate
    if len(las.curves) != declared:
        # Without that line every later column would have another curve's name.
        ails = unread.lines[0] if unread.lines else f"{len(las.curves)} of {declared} lines read"
        raise FormatError("a line of ~Curve does not read", where=where, measured=ails, limit="MNEM.UNIT VALUE : TEXT")
    return las, tuple(unread.lines)


class _Heard(logging.Handler):
    """What lasio warns of, kept."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.lines.append(record.getMessage()[:200])


def _header(sections: dict[str, str], las: Any, where: str, unread: tuple[str, ...]) -> Header:
    items = {str(item.original_mnemonic).upper(): str(item.value).strip() for item in reversed(las.well)}
    units = {str(item.original_mnemonic).upper(): str(item.unit or "") for item in reversed(las.well)}
    curves = [(str(item.original_mnemonic).strip() or "unnamed", str(item.unit or "")) for item in las.curves]
    if not curves:
        raise FormatError("no curves", where=where, measured="~Curve is empty", limit="an index and at least one curve")
    wrap = re.search(r"^\s*WRAP\s*\.\s*(\w+)", sections["V"], re.MULTILINE | re.IGNORECASE)
    elevation = math.nan
    match = _ELEVATION.search(sections.get("W", "")) or _ELEVATION.search(sections.get("P", ""))
    if match:
        elevation = float(match.group(3)) * (factor(unit_of(match.group(2)), "m") or 1.0)
        if not match.group(2) and unit_of(units.get("STRT", "")) == "ft":
            elevation *= 0.3048
    return Header(items, units, curves, bool(wrap and wrap.group(1).upper().startswith("Y")), elevation, unread)


def _empty_sentinels(rows: Any, null: str, options: LogOptions) -> None:
    """NaN for the file's NULL and for the sentinels of the trade."""
    values = list(options.sentinels)
    with contextlib.suppress(ValueError):
        values.append(float(null))
    for value in values:
        # Writers print NULL with other digits than the header has.
        rows[np.abs(rows - value) <= 1e-9 * max(1.0, abs(value))] = np.nan


def _column_faults(curves: list[tuple[str, str]], width: int, where: str) -> list[Fault]:
    faults = [
        Fault("curve", f"{where} curve {name}", f"declared, but rows have {width} columns", "left out")
        for name, _ in curves[width:]
    ]
    if width > len(curves):
        ails = f"rows have {width} columns, the header declares {len(curves)}"
        faults.append(Fault("column", f"{where} columns from {len(curves) + 1}", ails, "left out"))
    return faults


def _well(url: str, header: Header, depth: Any, tracks: tuple[Track, ...], faults: list[Fault]) -> Well:
    items = header.items
    step = _number(items.get("STEP", "")) * (
        factor(unit_of(header.units.get("STEP", "") or header.curves[0][1]), "m") or 1
    )
    grid = native_grid(depth, abs(step))
    if grid is None and depth.size > 1:
        ails = f"depth steps from {np.diff(depth).min():g} to {np.diff(depth).max():g} m"
        faults.append(Fault("axis", url, ails, "resampled"))
    elif grid and not abs(abs(step) - grid[0]) < 1e-3 * grid[0]:
        ails = f"STEP says {abs(step):g} m, depths are {grid[0]:g} m apart"
        faults.append(Fault("header", url, ails, "depths believed"))
    place = [_first_number(items, names) for names in (_X, _Y)]
    for k, names in enumerate((_X, _Y)):
        if math.isnan(place[k]):
            place[k] = first_value(tracks, names)
    name = items.get("WELL", "") or items.get("UWI", "") or PurePosixPath(url).stem
    uwi = items.get("UWI", "") or items.get("API", "")
    return Well(name, uwi, url, place[0], place[1], header.elevation_m, depth, grid[0] if grid else math.nan, tracks)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _first_number(items: dict[str, str], names: tuple[str, ...]) -> float:
    found = [_number(items[name]) for name in names if name in items]
    return next((value for value in found if math.isfinite(value) and value != 0), math.nan)
