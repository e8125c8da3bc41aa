"""MiniSEED records as columns: where each lies, what it holds, and which ones cannot be used.

Every count and offset that a header claims is held against the bytes that are there before the samples go to libmseed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geobatch.formats.miniseed_headers import DENSITIES, HEADER_BYTES, YEARS, Bytes, Ints, is_header, parse_headers


@dataclass(frozen=True)
class Records:
    """Usable records in the order of the file, one row each.

    Attributes:
        offset: First byte in the file.
        length: Bytes.
        channel: `NET.STA.LOC.CHA`.
        start_ns: Time of the first sample, ns since 1970 UTC, corrections applied.
        samples: Number of samples.
        rate: Samples per second as the header says.
        kind: `INTEGER`, `SINGLE` or `DOUBLE`.
    """

    offset: Ints
    length: Ints
    channel: npt.NDArray[np.str_]
    start_ns: Ints
    samples: Ints
    rate: npt.NDArray[np.float64]
    kind: Ints

    def __len__(self) -> int:
        return len(self.offset)

    def take(self, rows: npt.NDArray[Any]) -> Records:
        """Some of the records."""
        return Records(**{name: values[rows] for name, values in vars(self).items()})


@dataclass(frozen=True)
class Unusable:
    """Bytes of a file that give no samples: from `start` to before `end`, `count` records where they are records."""

    start: int
    end: int
    count: int
    fault: str


def read_records(data: bytes, base: int = 0, *, limit: int | None = None) -> tuple[Records, list[Unusable]]:
    """The usable records in `data`, and what lies between them.

    Args:
        data: Part of a file.
        base: Where the part begins in the file.
        limit: Only records that begin before this byte of `data`; all when not given.
    """
    buffer = np.frombuffer(data, np.uint8)
    limit = len(buffer) if limit is None else limit
    columns = _regular(buffer, limit)
    skipped: list[Unusable] = []
    if columns is None:
        columns, skipped = _walk(buffer, limit)
    faults = _faults(columns)
    usable = np.asarray(faults == "", bool)
    bad = [
        Unusable(int(offset), int(offset + length), 1, str(fault))
        for offset, length, fault in zip(
            columns["offset"][~usable], columns["length"][~usable], faults[~usable], strict=True
        )
    ]
    found = sorted(_joined(bad) + skipped, key=lambda part: part.start)
    records = Records(
        offset=columns["offset"][usable] + base,
        length=columns["length"][usable],
        channel=_channels(columns)[usable],
        start_ns=columns["start_ns"][usable],
        samples=columns["samples"][usable],
        rate=columns["rate"][usable],
        kind=columns["kind"][usable],
    )
    return records, [Unusable(part.start + base, part.end + base, part.count, part.fault) for part in found]


def _regular(buffer: Bytes, limit: int) -> dict[str, npt.NDArray[Any]] | None:
    """The headers of a part that is whole records of one length from its first byte on; None for any other."""
    if len(buffer) < HEADER_BYTES or not is_header(buffer, np.zeros(1, np.int64))[0]:
        return None
    length = int(parse_headers(buffer, np.zeros(1, np.int64))["length"][0])
    if length == 0 or len(buffer) % length:
        return None
    offsets = np.arange(0, min(limit, len(buffer)), length, dtype=np.int64)
    if not is_header(buffer, offsets).all():
        return None
    columns = parse_headers(buffer, offsets)
    return columns if (columns["length"] == length).all() else None


def _walk(buffer: Bytes, limit: int) -> tuple[dict[str, npt.NDArray[Any]], list[Unusable]]:
    """The headers of a part with records of several lengths, or with something else between them."""
    steps = _candidates(buffer)
    columns = parse_headers(buffer, steps)
    keep: list[int] = []
    skipped: list[Unusable] = []
    position = 0
    for row, (offset, length) in enumerate(zip(steps.tolist(), columns["length"].tolist(), strict=True)):
        if offset >= limit:
            break
        if offset < position or length == 0:
            continue
        if offset + length > len(buffer):
            continue
        if offset > position:
            skipped.append(_between(buffer, position, offset))
        keep.append(row)
        position = offset + length
    if position < min(limit, len(buffer)):
        skipped.append(_between(buffer, position, len(buffer)))
    return {name: values[keep] for name, values in columns.items()}, skipped


def _between(buffer: Bytes, start: int, end: int) -> Unusable:
    """What lies where a record should begin."""
    part = buffer[start:end]
    if not part.any() or (part[HEADER_BYTES // 6 :] == ord(" ")).all():
        return Unusable(start, end, 0, "blank")
    if len(part) >= HEADER_BYTES and is_header(part, np.zeros(1, np.int64))[0]:
        length = int(parse_headers(part, np.zeros(1, np.int64))["length"][0])
        if length > len(part):
            return Unusable(start, end, 1, f"ends inside a record of {length} bytes")
        if length == 0:
            return Unusable(start, end, 1, "a header without blockette 1000, which tells the length of the record")
    return Unusable(start, end, 0, "no MiniSEED record")


def _candidates(buffer: Bytes) -> Ints:
    """Every byte at which a header may begin: what was cut or put in may have shifted the records by any number."""
    if len(buffer) < HEADER_BYTES:
        return np.zeros(0, np.int64)
    quality = buffer[6 : len(buffer) - HEADER_BYTES + 7]
    steps = np.flatnonzero(
        (quality == ord("D")) | (quality == ord("R")) | (quality == ord("Q")) | (quality == ord("M"))
    )
    return steps[is_header(buffer, steps)]


def _faults(columns: dict[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Why each record cannot be used; empty where it can."""
    payload = columns["length"] - columns["data_offset"]
    dense = DENSITIES[columns["encoding"]]
    room = np.floor(payload * dense)
    faults = np.full(len(payload), "", object)
    rate = columns["rate"]

    def fault(mask: npt.NDArray[np.bool_], text: str, *named: str) -> None:
        for row in np.flatnonzero(mask):
            faults[row] = faults[row] or text.format(*(columns[name][row] for name in named))

    fault(columns["encoding"] == 0, "holds text, no samples")
    fault(columns["samples"] == 0, "holds no samples")
    fault((columns["year"] < YEARS[0]) | (columns["year"] > YEARS[1]), "is of the year {}", "year")
    fault((columns["day"] < 1) | (columns["day"] > 366) | ~columns["clock"], "has no valid time")
    fault(~(np.isfinite(rate) & (rate > 0)), "has a sampling rate of {:g} Hz", "rate")
    fault(dense == 0, "has the unknown encoding {}", "encoding")
    fault((columns["data_offset"] < HEADER_BYTES) | (payload <= 0), "has its samples at byte {}", "data_offset")
    fault(columns["samples"] > room, "claims {} samples, more than fit its {} bytes", "samples", "length")
    return faults


def _joined(bad: list[Unusable]) -> list[Unusable]:
    """Neighbours with the same fault as one."""
    joined: list[Unusable] = []
    for part in bad:
        last = joined[-1] if joined else None
        if last and last.end == part.start and last.fault == part.fault:
            joined[-1] = Unusable(last.start, part.end, last.count + part.count, part.fault)
        else:
            joined.append(part)
    return joined


def _channels(columns: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.str_]:
    """`NET.STA.LOC.CHA` of each record; what is no ASCII letter or digit becomes `_`."""
    identity = columns["identity"]
    begins = runs(identity)
    unique, inverse = np.unique(identity[begins], return_inverse=True)
    names = []
    for raw in unique.tolist():
        text = raw.ljust(12, b" ").decode("latin-1")
        codes = (text[10:12], text[0:5], text[5:7], text[7:10])
        names.append(
            ".".join("".join(c if c.isascii() and c.isalnum() else "_" for c in _bare(code)) for code in codes)
        )
    return np.repeat(np.array(names, np.str_)[inverse], np.diff(begins, append=len(identity)))


def runs(values: npt.NDArray[Any]) -> Ints:
    """The first row of every run of equal values: a file has few, and to sort its rows would take far longer."""
    changed = np.ones(len(values), bool)
    changed[1:] = values[1:] != values[:-1]
    return np.flatnonzero(changed)


def _bare(code: str) -> str:
    return code.strip(" \0")
