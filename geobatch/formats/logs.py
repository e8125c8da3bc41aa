"""CSV well logs: one table with a column for the well, or a file per well, into a survey of wells `(well, depth)`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from geobatch.errors import FormatError, UsageError
from geobatch.formats.ingestion import Fault
from geobatch.formats.logs_curves import DEPTH_NAMES, factor, unit_of
from geobatch.formats.logs_ingest import LogOptions, ingest_logs
from geobatch.formats.logs_inspect import inspect_logs
from geobatch.formats.logs_well import Floats, Track, Well, increasing, native_grid
from geobatch.formats.spec import IngestRun, Inspected
from geobatch.formats.tables import TextTable, Words, find_column, list_sources, numbers, open_table

SUFFIXES = (".csv", ".txt", ".tsv")
WELL_NAMES = ("well name", "well", "wellname", "well_name", "borehole", "uwi", "well id", "bore")
_UNIT = re.compile(r"^(.*?)[ _]*[\[(]([^\])]*)[\])]\s*$")


class Options(LogOptions):
    """Options of CSV logs.

    Attributes:
        well: Column with the name of the well; found by its name, and without one the file is one well.
        depth: Column with the depth; found by its name when not given.
        uwi: Column with the unique well identifier.
        x: Column with the easting of the well.
        y: Column with the northing of the well.
        curves: Columns to keep; all that hold numbers when not given.
        delimiter: Between columns; found when not given.
    """

    well: str | None = None
    depth: str | None = None
    uwi: str | None = None
    x: str | None = None
    y: str | None = None
    curves: tuple[str, ...] | None = None
    delimiter: str | None = None


def ingest_source(src_url: str, dst_url: str, options: Options, run: IngestRun) -> dict[str, Any]:
    """The summary of the survey of wells written to `dst_url` from a table of logs or a folder of them.

    Raises:
        NotFoundError: nothing is there.
        FormatError: no file can be read.
        UsageError: a column is missing, or the unit of depth is not stated.
    """
    return ingest_logs("logs", src_url, dst_url, SUFFIXES, partial(read_csv, options=options), options, run)


def inspect_source(src_url: str, options: Options) -> Inspected:
    """What a table of logs holds and what is suspicious about it."""
    return inspect_logs(list_sources(src_url, SUFFIXES), partial(read_csv, options=options), options, src_url)


def read_csv(url: str, options: Options) -> tuple[list[Well], list[Fault]]:
    """The wells of a table, in the order of their first rows, and what was wrong with its parts.

    Raises:
        FormatError: it is no table, or no row has a depth.
        UsageError: a column is missing, or the unit of depth is not stated.
    """
    table = open_table(url, () if options.depth else DEPTH_NAMES, options.delimiter)
    well_column = _column(table, options.well, WELL_NAMES)
    depth_column = _column(table, options.depth, DEPTH_NAMES)
    if depth_column is None:
        raise UsageError(
            "no column of depths", where=url, measured=", ".join(table.names), remedy="Give --set depth=…."
        )
    scale = _depth_factor(depth_column, options, url)
    roles = {role: _column(table, getattr(options, role), ()) for role in ("uwi", "x", "y")}
    read = _Columns(_curve_columns(table, options, {well_column, depth_column, *roles.values()}), options)
    well_words: list[Words] = []
    depths: list[Floats] = []
    extra: dict[str, list[Words]] = {role: [] for role, name in roles.items() if name}
    for _, block in table.blocks():
        depths.append(_present(numbers(block[depth_column])[0], options))
        well_words.append(block[well_column] if well_column else np.full(depths[-1].size, "", object))
        for role, parts in extra.items():
            parts.append(block[roles[role] or ""])
        read.add(block)
    if not depths:
        raise FormatError("no data rows", where=url, measured=f"{table.bad_rows} bad rows after the header")
    values, names, faults = read.result(url)
    faults += table.faults
    joined = {role: np.concatenate(parts) for role, parts in extra.items()}
    rows = _Rows(np.concatenate(well_words), np.concatenate(depths) * scale, values, names, joined)
    return _wells(url, table.header_line, rows, faults)


class _Columns:
    """Curves as they are read: numbers, or class numbers where the user gave a table of classes."""

    def __init__(self, names: Sequence[str], options: Options) -> None:
        self.names = list(names)
        self._options = options
        self._parts: dict[str, list[Floats]] = {name: [] for name in names}
        self._bad = dict.fromkeys(names, 0)
        self._example: dict[str, str] = {}

    def add(self, block: Mapping[str, Words]) -> None:
        """The next rows."""
        for name in self.names:
            codes = _class_table(name, self._options)
            if codes is not None and not all(_is_code(code) for code in codes):
                position = {str(code).lower(): k for k, code in enumerate(codes)}
                values = np.array([position.get(word.lower(), math.nan) for word in block[name]], np.float64)
                bad = np.isnan(values) & np.array([bool(word) for word in block[name]], bool)
            else:
                values, bad = numbers(block[name])
                values = _present(values, self._options)
            self._parts[name].append(values)
            if bad.any():
                self._bad[name] += int(bad.sum())
                self._example.setdefault(name, str(block[name][np.flatnonzero(bad)[0]]))

    def result(self, url: str) -> tuple[Floats, list[str], list[Fault]]:
        """Values `(row, column)`, their names, and faults; columns of text are left out."""
        faults, kept, names = [], [], []
        for name in self.names:
            values = np.concatenate(self._parts[name])
            where = f"{url} column {name}"
            example = f"such as {self._example.get(name, '')[:40]!r}"
            if not np.isfinite(values).any():
                faults.append(
                    Fault("curve", where, f"holds no number, {example}" if self._bad[name] else "is empty", "left out")
                )
                continue
            if self._bad[name]:
                faults.append(
                    Fault("curve", where, f"{self._bad[name]} cells are no number, {example}", "cells left empty")
                )
            kept.append(values)
            names.append(name)
        if not kept:
            raise FormatError("no column of numbers besides the depth", where=url, measured=", ".join(self.names)[:200])
        return np.stack(kept, axis=1), names, faults


@dataclass(frozen=True)
class _Rows:
    """All rows: well and depth in metres of each, values `(row, column)` with their names, and what else was asked."""

    well: Words
    depth: Floats
    values: Floats
    names: list[str]
    extra: dict[str, Words]


def _wells(url: str, header_line: int, table: _Rows, faults: list[Fault]) -> tuple[list[Well], list[Fault]]:
    """Rows by well."""
    lines = np.arange(table.depth.size, dtype=np.int64) + header_line + 1
    found, error = [], None
    for name in dict.fromkeys(table.well):
        rows = np.flatnonzero(table.well == name)
        called = str(name) or PurePosixPath(url).stem
        try:
            own, mine, more = increasing(table.depth[rows], table.values[rows], lines[rows], url)
        except FormatError as failed:
            error = failed
            faults.append(Fault("well", f"{url} well {called}", failed.what, "left out"))
            continue
        faults += more
        grid = native_grid(own)
        tracks = tuple(_track(column, np.ascontiguousarray(mine[:, k])) for k, column in enumerate(table.names))
        x, y = (_first(table.extra, role, rows) for role in ("x", "y"))
        uwi = str(table.extra["uwi"][rows[0]]) if "uwi" in table.extra else ""
        found.append(Well(called, uwi, url, x, y, math.nan, own, grid[0] if grid else math.nan, tracks))
    if not found and error:
        raise error
    return found, faults


def _track(column: str, values: Floats) -> Track:
    match = _UNIT.match(column)
    return Track(match.group(1), unit_of(match.group(2)), values) if match else Track(column, "", values)


def _column(table: TextTable, given: str | None, candidates: Sequence[str]) -> str | None:
    if given is None:
        return find_column(table.names, candidates)
    found = given if given in table.names else find_column(table.names, [given])
    if found is None:
        raise UsageError("no such column", where=table.url, measured=given, limit=", ".join(table.names))
    return found


def _curve_columns(table: TextTable, options: Options, others: set[str | None]) -> list[str]:
    if options.curves is None:
        return [name for name in table.names if name not in others]
    return [str(_column(table, name, ())) for name in options.curves]


def _depth_factor(column: str, options: Options, where: str) -> float:
    match = _UNIT.match(column)
    unit = options.depth_unit or (unit_of(match.group(2)) if match else "")
    known = factor(unit, "m")
    if not unit or known is None:
        raise UsageError(
            "unit of depth is not stated",
            where=f"{where} column {column}",
            measured=unit,
            limit="m or ft",
            remedy="Give --set depth_unit=m or ft.",
        )
    return known


def _class_table(name: str, options: Options) -> Mapping[int | str, str] | None:
    """Class names per code of a label column, None when it has none."""
    return next((table for key, table in options.classes.items() if key.upper() == name.upper()), None)


def _is_code(code: int | str) -> bool:
    try:
        float(code)
    except ValueError:
        return False
    return True


def _present(values: Floats, options: Options) -> Floats:
    return np.where(np.isin(values, options.sentinels), np.nan, values)


def _first(extra: Mapping[str, Words], role: str, rows: Any) -> float:
    if role not in extra:
        return math.nan
    values = numbers(extra[role][rows])[0]
    finite = values[np.isfinite(values)]
    return float(finite[0]) if finite.size else math.nan
