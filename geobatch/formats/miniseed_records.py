"""MiniSEED record headers as columns: where each record lies, what it holds, and which ones cannot be used.

Header positions: SEED 2.4, chapter 8, fixed section of the data header and blockettes 100, 1000 and 1001. Every count
and offset that a header claims is held against the bytes that are there before the samples go to libmseed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

HEADER_BYTES = 48
LENGTH_EXPONENTS = (7, 20)
BLOCKETTES = 16
YEARS = (1900, 2100)
NS_PER_TICK = 100_000
NS_PER_S = 1_000_000_000
CORRECTION_APPLIED = 2

INTEGER, SINGLE, DOUBLE = 0, 1, 2
ENCODINGS: dict[int, tuple[str, int, float]] = {
    1: ("INT16", INTEGER, 1 / 2),
    3: ("INT32", INTEGER, 1 / 4),
    4: ("FLOAT32", SINGLE, 1 / 4),
    5: ("FLOAT64", DOUBLE, 1 / 8),
    10: ("STEIM1", INTEGER, 15 * 4 / 64),
    11: ("STEIM2", INTEGER, 15 * 7 / 64),
    12: ("GEOSCOPE24", SINGLE, 1 / 3),
    13: ("GEOSCOPE16_3", SINGLE, 1 / 2),
    14: ("GEOSCOPE16_4", SINGLE, 1 / 2),
    16: ("CDSN", INTEGER, 1 / 2),
    30: ("SRO", INTEGER, 1 / 2),
    32: ("DWWSSN", INTEGER, 1 / 2),
}
"""By the code in blockette 1000: name, kind of samples, and most samples in one byte of a record."""

# By code; the last one stands for none told.
_KINDS = np.array([ENCODINGS.get(code, ("", 0, 0.0))[1] for code in range(257)], np.int64)
_DENSITIES = np.array([ENCODINGS.get(code, ("", 0, 0.0))[2] for code in range(257)], np.float64)

_FIELDS = [
    ("sequence", "6u1"),
    ("quality", "u1"),
    ("reserved", "u1"),
    ("station", "S5"),
    ("location", "S2"),
    ("channel", "S3"),
    ("network", "S2"),
    ("year", "u2"),
    ("day", "u2"),
    ("hour", "u1"),
    ("minute", "u1"),
    ("second", "u1"),
    ("unused", "u1"),
    ("ticks", "u2"),
    ("samples", "u2"),
    ("factor", "i2"),
    ("multiplier", "i2"),
    ("activity", "u1"),
    ("io", "u1"),
    ("data_quality", "u1"),
    ("blockettes", "u1"),
    ("correction", "i4"),
    ("data_offset", "u2"),
    ("first_blockette", "u2"),
]
_BIG = np.dtype(_FIELDS).newbyteorder(">")
_LITTLE = np.dtype(_FIELDS).newbyteorder("<")


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
    if len(buffer) < HEADER_BYTES or not _looks(buffer, np.zeros(1, np.int64))[0]:
        return None
    length = int(_parse(buffer, np.zeros(1, np.int64))["length"][0])
    if length == 0 or len(buffer) % length:
        return None
    offsets = np.arange(0, min(limit, len(buffer)), length, dtype=np.int64)
    if not _looks(buffer, offsets).all():
        return None
    columns = _parse(buffer, offsets)
    return columns if (columns["length"] == length).all() else None


def _walk(buffer: Bytes, limit: int) -> tuple[dict[str, npt.NDArray[Any]], list[Unusable]]:
    """The headers of a part with records of several lengths, or with something else between them."""
    steps = _candidates(buffer)
    columns = _parse(buffer, steps)
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
    if len(part) >= HEADER_BYTES and _looks(part, np.zeros(1, np.int64))[0]:
        length = int(_parse(part, np.zeros(1, np.int64))["length"][0])
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
    return steps[_looks(buffer, steps)]


def _looks(buffer: Bytes, offsets: Ints) -> npt.NDArray[np.bool_]:
    """True where a data record header may begin: sequence number, one of D R Q M, a blank."""
    head = _bytes_at(buffer, offsets, 8)
    digit = ((head[:, :6] >= ord("0")) & (head[:, :6] <= ord("9"))) | (head[:, :6] == ord(" ")) | (head[:, :6] == 0)
    quality = np.isin(head[:, 6], np.frombuffer(b"DRQM", np.uint8))
    return np.asarray(digit.all(axis=1) & quality & np.isin(head[:, 7], (ord(" "), 0)))


def _parse(buffer: Bytes, offsets: Ints) -> dict[str, npt.NDArray[Any]]:
    """Columns of the headers at these offsets; `length` is 0 where no blockette 1000 tells it."""
    head = _bytes_at(buffer, offsets, HEADER_BYTES)
    big, little = head.view(_BIG)[:, 0], head.view(_LITTLE)[:, 0]
    swapped = ~_dated(big) & _dated(little)
    mixed = swapped.any()

    def field(name: str) -> npt.NDArray[Any]:
        return (np.where(swapped, little[name], big[name]) if mixed else big[name]).astype(np.int64)

    told = _blockettes(buffer, offsets, field("first_blockette"), swapped)
    factor, multiplier = field("factor").astype(float), field("multiplier").astype(float)
    samples, year = field("samples"), field("year")
    timed = (year >= YEARS[0]) & (year <= YEARS[1])
    year_start = (np.where(timed, year, 1970) - 1970).astype("datetime64[Y]").astype("datetime64[ns]").astype(np.int64)
    pending = (field("activity") & CORRECTION_APPLIED) == 0
    seconds = ((field("day") - 1) * 24 + field("hour")) * 3600 + field("minute") * 60 + field("second")
    ticks = field("ticks") + np.where(pending, field("correction"), 0)
    return {
        "offset": offsets,
        "length": told["length"],
        "identity": np.ascontiguousarray(head[:, 8:20]).view("S12")[:, 0],
        "year": year,
        "start_ns": year_start + seconds * NS_PER_S + ticks * NS_PER_TICK + told["microseconds"] * 1000,
        "day": field("day"),
        "clock": (field("hour") < 24) & (field("minute") < 60) & (field("second") <= 60) & (field("ticks") < 10_000),
        "samples": samples,
        "rate": np.where(np.isnan(told["rate"]), _nominal(factor, multiplier), told["rate"]),
        "encoding": told["encoding"],
        "kind": _KINDS[told["encoding"]],
        "data_offset": field("data_offset"),
    }


def _bytes_at(buffer: Bytes, offsets: Ints, count: int) -> Bytes:
    """So many bytes from each offset on, one row each."""
    if not len(offsets):
        return np.zeros((0, count), np.uint8)
    return np.lib.stride_tricks.sliding_window_view(buffer, count)[offsets]


def _dated(head: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """True where year and day make sense in this byte order, which is how the order is told."""
    year, day = head["year"], head["day"]
    return np.asarray((year >= YEARS[0]) & (year <= YEARS[1]) & (day >= 1) & (day <= 366))


def _nominal(factor: npt.NDArray[np.float64], multiplier: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Samples per second from factor and multiplier, of which a negative one divides; 0 when one is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = np.where(factor > 0, factor, -1 / factor) * np.where(multiplier > 0, multiplier, -1 / multiplier)
    return np.where((factor == 0) | (multiplier == 0), 0.0, rate)


def _blockettes(buffer: Bytes, offsets: Ints, first: Ints, swapped: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """What the chain of blockettes says; a chain may only go forward and ends after 16."""
    count = len(offsets)
    told: dict[str, Any] = {
        "length": np.zeros(count, np.int64),
        "encoding": np.full(count, -1, np.int64),
        "microseconds": np.zeros(count, np.int64),
        "rate": np.full(count, np.nan),
    }
    position = first.copy()
    rows = np.flatnonzero((position >= HEADER_BYTES) & (offsets + position + 8 <= len(buffer)))
    for _ in range(BLOCKETTES):
        if not len(rows):
            break
        body = _bytes_at(buffer, offsets[rows] + position[rows], 8)
        words = np.where(swapped[rows, None], body.view("<u2"), body.view(">u2")).astype(np.int64)
        kind, following = words[:, 0], words[:, 1]
        _hear(told, rows, kind, body, swapped[rows])
        onward = (following > position[rows]) & (offsets[rows] + following + 8 <= len(buffer))
        position[rows] = following
        rows = rows[onward]
    return told


def _hear(told: dict[str, Any], rows: Ints, kind: Ints, body: Bytes, swapped: npt.NDArray[np.bool_]) -> None:
    """Take what blockettes 100, 1000 and 1001 say of these rows."""
    exponent = body[:, 6].astype(np.int64)
    told_length = (kind == 1000) & (exponent >= LENGTH_EXPONENTS[0]) & (exponent <= LENGTH_EXPONENTS[1])
    told["length"][rows[told_length]] = 1 << exponent[told_length]
    told["encoding"][rows[told_length]] = body[told_length, 4]
    timed = kind == 1001
    told["microseconds"][rows[timed]] = body[timed, 5].view(np.int8)
    rated = kind == 100
    if rated.any():
        four = np.ascontiguousarray(body[rated, 4:8])
        told["rate"][rows[rated]] = np.where(swapped[rated], four.view("<f4")[:, 0], four.view(">f4")[:, 0])


def _faults(columns: dict[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Why each record cannot be used; empty where it can."""
    payload = columns["length"] - columns["data_offset"]
    dense = _DENSITIES[columns["encoding"]]
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
