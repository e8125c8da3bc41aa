"""The numbers of a LAS file's ~A section, row by row: what is bad in a row or a cell is told, the others are kept."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from geobatch.errors import FormatError
from geobatch.formats.ingestion import Fault
from geobatch.formats.logs_well import Floats, row_faults

# Several times the longest line that a file of the most curves can have.
BLOCK_CHARACTERS = 2**17
SAMPLE_LINES = 200
MISSING_WORDS = {"", "-", "--", "nan", "null", "none", "n/a", "na", "inf", "+inf", "-inf", "#n/a", "missing"}
# As lasio reads them: numbers that a fixed-width writer ran together, and decimal commas.
_RUN_ON = re.compile(r"(\d)-(\d)")
_DECIMAL_COMMA = re.compile(r"(\d),(\d)")


@dataclass
class Table:
    """What was read.

    Attributes:
        rows: `(row, column)` float64, NaN where a cell holds no number.
        lines: Line of the file of each row.
        faults: Rows that were left out, and cells that hold no number.
    """

    rows: Floats
    lines: npt.NDArray[np.int64]
    faults: list[Fault] = field(default_factory=list)


@dataclass
class _Bad:
    """Bad rows and cells as they are met: all are counted, the first are told. `pattern`: values per line of a row."""

    rows: list[tuple[int, str]] = field(default_factory=list)
    row_count: int = 0
    split: list[tuple[int, str]] = field(default_factory=list)
    pattern: list[int] = field(default_factory=list)
    cells: Counter[int] = field(default_factory=Counter)
    first_cell: dict[int, tuple[int, str]] = field(default_factory=dict)

    def row(self, line: int, ails: str) -> None:
        self.row_count += 1
        if len(self.rows) < 1000:
            self.rows.append((line, ails))


def read_rows(text: str, start: int, first_line: int, wrapped: bool, null_word: str, columns: int, where: str) -> Table:
    """The table from `text[start:]`.

    Args:
        text: The file.
        start: Where the first line of data begins.
        first_line: Its number, from 1.
        wrapped: A row takes several lines.
        null_word: How the header writes a missing value, text or number.
        columns: How many the header declares; wrapped rows have exactly so many.
        where: The file, for messages.

    Raises:
        FormatError: there is no row of numbers.
    """
    sample = [line for _, line in _first(text, start, first_line)]
    if not sample:
        raise FormatError("no data rows", where=where, measured="nothing after ~A")
    split, width = (str.split, columns) if wrapped else _layout(sample, columns)
    bad = _Bad()
    parts: list[Floats] = []
    numbers: list[npt.NDArray[np.int64]] = []
    missing = MISSING_WORDS | {null_word.strip().lower()}
    for lines in _blocks(text, start, first_line):
        whole = lines[:-1] if _cut_short(text, lines, sample) else lines
        if len(whole) != len(lines):
            bad.row(lines[-1][0], "the file ends inside it")
        rows = list(_unwrapped(whole, width, bad) if wrapped else _plain(whole, split, width, bad))
        if rows:
            parts.append(_numbers(rows, width, missing, bad))
            numbers.append(np.array([line for line, _ in rows], np.int64))
    if not parts:
        ails = f", such as: {bad.rows[0][1]}" if bad.rows else ""
        raise FormatError("no row of numbers", where=where, measured=f"{bad.row_count} bad rows{ails}", limit=width)
    faults = row_faults(where, iter(bad.rows), bad.row_count) + row_faults(
        where, iter(bad.split), len(bad.split), "split"
    )
    return Table(np.concatenate(parts), np.concatenate(numbers), faults + _cell_faults(bad, where))


def _first(text: str, start: int, first_line: int) -> list[tuple[int, str]]:
    """The first lines that hold data."""
    for lines in _blocks(text, start, first_line):
        return lines[:SAMPLE_LINES]
    return []


def _blocks(text: str, start: int, first_line: int) -> Iterator[list[tuple[int, str]]]:
    """Numbered lines of data, a few hundred rows at a time, without comments and blank lines; a section ends them."""
    line = first_line
    while start < len(text):
        stop = min(start + BLOCK_CHARACTERS, len(text))
        end = len(text) if stop == len(text) else text.rfind("\n", start, stop) + 1
        if end:
            found = text[start:end].split("\n")
        else:
            # A line longer than a block is bad: its beginning stands for it.
            end = text.find("\n", stop) + 1 or len(text)
            found = [text[start:stop], ""]
        kept: list[tuple[int, str]] = []
        for offset, content in enumerate(found):
            if content.lstrip().startswith("~"):
                if kept:
                    yield kept
                return
            if content.strip() and not content.lstrip().startswith("#"):
                kept.append((line + offset, content))
        if kept:
            yield kept
        line += len(found) - 1
        start = end


def _layout(sample: list[str], columns: int) -> tuple[Callable[[str], list[str]], int]:
    """How a row is split, and into how many: as most rows agree, what the header declares first."""

    def on_comma(line: str) -> list[str]:
        return [part.strip() for part in line.split(",")]

    def on_tab(line: str) -> list[str]:
        return [part.strip() for part in line.split("\t")]

    def decimal_comma(line: str) -> list[str]:
        return _DECIMAL_COMMA.sub(r"\1.\2", line).split()

    commas = any("," in line for line in sample)
    ways: list[Callable[[str], list[str]]] = [decimal_comma if commas else str.split]
    ways += [on_comma] if commas else []
    ways += [on_tab] if any("\t" in line for line in sample) else []
    widths = {way: Counter(len(way(line)) for line in sample).most_common(1)[0][0] for way in ways}
    for way in ways:
        if widths[way] == columns:
            return way, columns
    best = min(ways, key=lambda way: abs(widths[way] - columns))
    declared = sum(len(best(line)) == columns for line in sample)
    return best, columns if declared * 2 >= len(sample) else widths[best]


def _plain(
    lines: list[tuple[int, str]], split: Callable[[str], list[str]], width: int, bad: _Bad
) -> Iterator[tuple[int, list[str]]]:
    """Rows of one line each."""
    for number, line in lines:
        if len(line) == BLOCK_CHARACTERS:
            bad.row(number, f"longer than {BLOCK_CHARACTERS} characters")
            continue
        tokens = split(line)
        if len(tokens) == width:
            yield number, tokens
            continue
        apart = split(_RUN_ON.sub(r"\1 -\2", line))
        if len(apart) == width:
            bad.split.append((number, "numbers run together"))
            yield number, apart
        else:
            bad.row(number, f"{len(tokens)} of {width} values")


def _unwrapped(lines: list[tuple[int, str]], width: int, bad: _Bad) -> Iterator[tuple[int, list[str]]]:
    """Rows of several lines: the depth stands alone on the first (LAS 2.0, section 3).

    A single value where other rows have several begins a new row, so that one that was cut costs only itself.
    """
    row: list[str] = []
    shape: list[int] = []
    first = place = 0
    for number, line in lines:
        tokens = line.split()
        if row and len(tokens) == 1 and place < len(bad.pattern) and bad.pattern[place] > 1:
            bad.row(first, f"{len(row)} of {width} values")
            row = []
        if not row:
            first, place, shape = number, 0, []
        row += tokens
        shape.append(len(tokens))
        place += 1
        if len(row) >= width:
            if len(row) == width:
                bad.pattern = shape
                yield first, row
            else:
                bad.row(first, f"{len(row)} of {width} values")
            row = []
    if row:
        bad.row(first, f"{len(row)} of {width} values")


def _cut_short(text: str, lines: list[tuple[int, str]], sample: list[str]) -> bool:
    """True when the last line of the file lacks its end, which in a table of fixed width shows by its length."""
    if text.endswith(("\n", "\r")) or not text.endswith(lines[-1][1]) or len(sample) < 2:
        return False
    lengths = {len(line.rstrip()) for line in sample[:-1]}
    return len(lengths) == 1 and len(lines[-1][1].rstrip()) < lengths.pop()


def _numbers(rows: list[tuple[int, list[str]]], width: int, missing: set[str], bad: _Bad) -> Floats:
    """The rows as `(row, column)` float64."""
    try:
        if not any("_" in token for _, tokens in rows for token in tokens):
            values = np.array([[float(token) for token in tokens] for _, tokens in rows], np.float64)
            values[~np.isfinite(values)] = np.nan
            return values.reshape(len(rows), width)
    except ValueError:
        pass
    return np.array([[_cell(token, c, n, missing, bad) for c, token in enumerate(t)] for n, t in rows], np.float64)


def _cell(token: str, column: int, line: int, missing: set[str], bad: _Bad) -> float:
    try:
        if "_" not in token:
            value = float(token)
            return value if np.isfinite(value) else np.nan
    except ValueError:
        pass
    if token.strip("\"'").lower() not in missing:
        bad.cells[column] += 1
        bad.first_cell.setdefault(column, (line, token))
    return np.nan


def _cell_faults(bad: _Bad, where: str) -> list[Fault]:
    faults = []
    for column, count in sorted(bad.cells.items()):
        line, token = bad.first_cell[column]
        ails = f"{count} cells hold no number, such as {token[:40]!r} in line {line}"
        faults.append(Fault("column", f"{where} column {column + 1}", ails, "cells left empty"))
    return faults
