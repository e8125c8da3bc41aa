"""What the header of a MiniSEED record says, for many records at once.

Header positions: SEED 2.4, chapter 8, fixed section of the data header and blockettes 100, 1000 and 1001.
"""

from __future__ import annotations

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
DENSITIES = np.array([ENCODINGS.get(code, ("", 0, 0.0))[2] for code in range(257)], np.float64)

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


def is_header(buffer: Bytes, offsets: Ints) -> npt.NDArray[np.bool_]:
    """True where a data record header may begin: sequence number, one of D R Q M, a blank."""
    head = _bytes_at(buffer, offsets, 8)
    digit = ((head[:, :6] >= ord("0")) & (head[:, :6] <= ord("9"))) | (head[:, :6] == ord(" ")) | (head[:, :6] == 0)
    quality = np.isin(head[:, 6], np.frombuffer(b"DRQM", np.uint8))
    return np.asarray(digit.all(axis=1) & quality & np.isin(head[:, 7], (ord(" "), 0)))


def parse_headers(buffer: Bytes, offsets: Ints) -> dict[str, npt.NDArray[Any]]:
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
