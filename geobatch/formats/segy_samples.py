"""Sample formats of SEG-Y: raw bytes to float32 and back (code in bytes 3225-3226, SEG-Y rev 2, table 5)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from geobatch.formats.ibm import decode_ibm, encode_ibm

ByteOrder = Literal[">", "<"]
CODE_IBM, CODE_INT16, CODE_IEEE = 1, 3, 5
KINDS = {
    2: "i4",
    CODE_INT16: "i2",
    CODE_IEEE: "f4",
    6: "f8",
    8: "i1",
    9: "i8",
    10: "u4",
    11: "u2",
    12: "u8",
    16: "u1",
}
SAMPLE_BYTES = {CODE_IBM: 4} | {code: np.dtype(kind).itemsize for code, kind in KINDS.items()}
OTHER_CODES = {4: "32-bit fixed point with gain", 7: "24-bit integer", 15: "24-bit unsigned integer"}
SUPPORTED = (
    "codes 1 (IBM), 2, 3, 8, 9 (int32, 16, 8, 64), 5, 6 (IEEE 32-bit, 64-bit) or 10, 11, 12, 16 (uint32, 16, 64, 8)"
)


def decode_samples(raw: npt.NDArray[np.uint8], code: int, order: ByteOrder) -> npt.NDArray[np.float32]:
    """Samples `(trace, sample)` float32 from their raw bytes `(trace, bytes)`.

    Integers beyond 2^24 and 64-bit floats are rounded to float32, those beyond its range to infinity; for IBM floats
    see `decode_ibm`.
    """
    contiguous = np.ascontiguousarray(raw)
    if code == CODE_IBM:
        return decode_ibm(contiguous.view(np.dtype(order + "u4")))
    with np.errstate(over="ignore", invalid="ignore"):
        return contiguous.view(np.dtype(order + KINDS[code])).astype(np.float32)


def encode_samples(values: npt.NDArray[np.float32], code: int, order: ByteOrder) -> npt.NDArray[np.uint8]:
    """The raw bytes `(trace, bytes)` of samples `(trace, sample)`, such that `decode_samples` gives them back.

    Integers are rounded and limited to their range, with NaN as 0; for IBM floats see `encode_ibm`.
    """
    if code == CODE_IBM:
        words: npt.NDArray[Any] = encode_ibm(values).astype(np.dtype(order + "u4"))
    elif KINDS[code][0] == "f":
        words = values.astype(np.dtype(order + KINDS[code]))
    else:
        limits = np.iinfo(np.dtype(KINDS[code]))
        whole = np.rint(np.nan_to_num(values.astype(np.float64), nan=0.0))
        # The largest 64-bit integers are no doubles: they would round out of range.
        highest = float(limits.max) if float(limits.max) <= limits.max else float(np.nextafter(float(limits.max), 0))
        words = np.clip(whole, limits.min, highest).astype(np.dtype(order + KINDS[code]))
    return np.ascontiguousarray(words).view(np.uint8)
