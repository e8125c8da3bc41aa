"""SEG-Y files in a bucket or on a disk: the file header, and runs of traces read by byte range.

Byte positions are 1-based as in the SEG-Y rev 1 standard (SEG, 2002); trace header positions count from the trace,
binary header positions from the file.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from geobatch.errors import FormatError, UsageError
from geobatch.formats.ibm import decode_ibm, encode_ibm
from geobatch.storage import absolute_url, open_storage, split_url

TEXT_BYTES = 3200
FILE_HEADER_BYTES = 3600
TRACE_HEADER_BYTES = 240
CODE_IBM, CODE_INT32, CODE_INT16, CODE_IEEE, CODE_INT8 = 1, 2, 3, 5, 8
SAMPLE_BYTES = {CODE_IBM: 4, CODE_INT32: 4, CODE_INT16: 2, CODE_IEEE: 4, CODE_INT8: 1}
OTHER_CODES = {
    4: "32-bit fixed point with gain",
    6: "IEEE 64-bit float",
    7: "24-bit integer",
    9: "64-bit integer",
    10: "32-bit unsigned integer",
    11: "16-bit unsigned integer",
    12: "64-bit unsigned integer",
    15: "24-bit unsigned integer",
    16: "8-bit unsigned integer",
}
ByteOrder = Literal[">", "<"]

# Trace header fields besides those a layout names: 1-based byte, NumPy type.
TRACE_CODE = (29, "i2")
COORDINATE_UNITS = (89, "i2")
DELAY = (109, "i2")
TRACE_SAMPLES = (115, "u2")
TRACE_INTERVAL = (117, "u2")
VALUE_UNIT = (203, "i2")
TIME_SCALAR = (215, "i2")


@dataclass(frozen=True)
class SegyLayout:
    """Where a file keeps its geometry: first byte (1-based) in the trace header; SEG-Y rev 1 by default.

    Attributes:
        inline: Inline number, 4-byte integer.
        crossline: Crossline number, 4-byte integer.
        cdp_x: Easting of the bin, 4-byte integer before the scalar.
        cdp_y: Northing of the bin, 4-byte integer before the scalar.
        coordinate_scalar: 2-byte integer; negative divides, positive multiplies, 0 counts as 1.
    """

    inline: int = 189
    crossline: int = 193
    cdp_x: int = 181
    cdp_y: int = 185
    coordinate_scalar: int = 71

    def __post_init__(self) -> None:
        for name, byte in dataclasses.asdict(self).items():
            last = TRACE_HEADER_BYTES - (1 if name == "coordinate_scalar" else 3)
            if not 1 <= byte <= last:
                raise UsageError(
                    "trace header position is outside the header", where=name, measured=byte, limit=f"1 to {last}"
                )


@dataclass(frozen=True)
class SegyFile:
    """What the file header says: enough to find and decode any trace by byte range. Pickles into a task.

    Attributes:
        url: Absolute URL of the file.
        version: ETag, or size and modification time.
        size_bytes: Size of the file.
        header: Textual, binary and extended textual headers, raw.
        byte_order: `>` as the standard says, or `<` as some writers do.
        revision: Major revision of the standard, 0 when the field is unset.
        format_code: Sample format code, bytes 3225-3226.
        sample_count: Samples per trace.
        interval_thousandths: Sample interval in microseconds or, in depth, thousandths of the depth unit.
        trace_count: Traces in the file.
    """

    url: str
    version: str
    size_bytes: int
    header: bytes = dataclasses.field(repr=False)
    byte_order: ByteOrder
    revision: int
    format_code: int
    sample_count: int
    interval_thousandths: float
    trace_count: int

    @property
    def trace_bytes(self) -> int:
        """Header and samples of one trace."""
        return TRACE_HEADER_BYTES + self.sample_count * SAMPLE_BYTES[self.format_code]

    @property
    def in_feet(self) -> bool:
        """True when the binary header gives lengths in feet (bytes 3255-3256)."""
        return _binary(self.header, 3255, "i2", self.byte_order) == 2

    @property
    def text(self) -> str:
        """The textual and extended textual headers, decoded, in lines of 80 characters."""
        raw = self.header[:TEXT_BYTES] + self.header[FILE_HEADER_BYTES:]
        text = raw.decode("cp037" if is_ebcdic(raw) else "latin-1")
        return "\n".join(text[i : i + 80].rstrip() for i in range(0, len(text), 80))

    def read_traces(self, first: int, count: int) -> npt.NDArray[np.uint8]:
        """Traces `first` to `first + count`, `(trace, trace_bytes)` uint8, by one ranged read."""
        root, name = split_url(self.url)
        start = len(self.header) + first * self.trace_bytes
        raw = open_storage(root).get_range(name, start, count * self.trace_bytes)
        return np.frombuffer(raw, np.uint8).reshape(count, self.trace_bytes)

    def decode(self, traces: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """The samples of raw traces, `(trace, sample)` float32."""
        return decode_samples(traces[:, TRACE_HEADER_BYTES:], self.format_code, self.byte_order)


def open_segy(url: str) -> SegyFile:
    """The description of the SEG-Y file at `url`, from its headers alone.

    Raises:
        NotFoundError: no such file.
        FormatError: it is no SEG-Y file, of an unsupported sample format, or cut off inside a trace.
    """
    url = absolute_url(url)
    root, name = split_url(url)
    storage = open_storage(root)
    size_bytes = storage.size(name)
    if size_bytes < FILE_HEADER_BYTES + TRACE_HEADER_BYTES:
        raise FormatError(
            "file is too short for SEG-Y" if size_bytes else "file is empty",
            where=url,
            measured=f"{size_bytes} bytes",
            limit=f"{FILE_HEADER_BYTES} bytes of headers and at least one trace",
            remedy="Copy the file again from its source.",
        )
    head = storage.get_range(name, 0, FILE_HEADER_BYTES + TRACE_HEADER_BYTES)
    order, code = _sample_format(head, url)
    revision = _revision(head, order)
    header_bytes = _header_bytes(url, head, order, revision, size_bytes)
    header = storage.get_range(name, 0, header_bytes)
    first_trace = storage.get_range(name, header_bytes, min(TRACE_HEADER_BYTES, size_bytes - header_bytes))
    samples = _sample_count(header, first_trace, order, revision, url)
    file = SegyFile(
        url=url,
        version=storage.version(name),
        size_bytes=size_bytes,
        header=header,
        byte_order=order,
        revision=revision,
        format_code=code,
        sample_count=samples,
        interval_thousandths=_interval(header, first_trace, order, revision, url),
        trace_count=0,
    )
    return dataclasses.replace(file, trace_count=_trace_count(file))


def is_ebcdic(raw: bytes) -> bool:
    """True when a textual header is EBCDIC (code page 037) rather than ASCII: it has more EBCDIC than ASCII blanks."""
    return raw.count(0x40) > raw.count(0x20)


def header_field(headers: npt.NDArray[np.uint8], byte: int, kind: str, order: ByteOrder) -> npt.NDArray[Any]:
    """One field of many trace headers, in native byte order.

    Args:
        headers: `(trace, bytes)` uint8, at least the 240 header bytes of each trace.
        byte: First byte of the field, 1-based.
        kind: NumPy type without byte order, such as `i4`.
        order: Byte order of the file.
    """
    dtype = np.dtype(order + kind)
    raw = np.ascontiguousarray(headers[:, byte - 1 : byte - 1 + dtype.itemsize])
    return raw.view(dtype)[:, 0].astype(dtype.newbyteorder("="))


def set_header_field(headers: npt.NDArray[np.uint8], byte: int, kind: str, order: ByteOrder, value: int) -> None:
    """Write one value into a field of many trace headers, in place."""
    raw = np.frombuffer(np.array(value, np.dtype(order + kind)).tobytes(), np.uint8)
    headers[:, byte - 1 : byte - 1 + raw.size] = raw


def decode_samples(raw: npt.NDArray[np.uint8], code: int, order: ByteOrder) -> npt.NDArray[np.float32]:
    """Samples `(trace, sample)` float32 from their raw bytes `(trace, bytes)`.

    32-bit integers beyond 2^24 are rounded to float32; for IBM floats see `decode_ibm`.
    """
    contiguous = np.ascontiguousarray(raw)
    if code == CODE_IBM:
        return decode_ibm(contiguous.view(np.dtype(order + "u4")))
    return contiguous.view(_dtype(code, order)).astype(np.float32)


def encode_samples(values: npt.NDArray[np.float32], code: int, order: ByteOrder) -> npt.NDArray[np.uint8]:
    """The raw bytes `(trace, bytes)` of samples `(trace, sample)`, such that `decode_samples` gives them back.

    Integers are rounded and limited to their range, with NaN as 0; for IBM floats see `encode_ibm`.
    """
    if code == CODE_IBM:
        words: npt.NDArray[Any] = encode_ibm(values).astype(np.dtype(order + "u4"))
    elif code == CODE_IEEE:
        words = values.astype(_dtype(code, order))
    else:
        limits = np.iinfo(_dtype(code, order))
        whole = np.clip(np.rint(np.nan_to_num(values.astype(np.float64), nan=0.0)), limits.min, limits.max)
        words = whole.astype(_dtype(code, order))
    return np.ascontiguousarray(words).view(np.uint8)


def _dtype(code: int, order: ByteOrder) -> np.dtype[Any]:
    kinds = {CODE_INT32: "i4", CODE_INT16: "i2", CODE_IEEE: "f4", CODE_INT8: "i1"}
    return np.dtype(order + kinds[code])


def _binary(header: bytes, byte: int, kind: str, order: ByteOrder) -> int | float:
    """One field of the binary header, by its 1-based byte in the file."""
    value: int | float = np.frombuffer(header, np.dtype(order + kind), count=1, offset=byte - 1)[0].item()
    return value


def _sample_format(head: bytes, url: str) -> tuple[ByteOrder, int]:
    """Byte order and sample format code: a code is below 256, so only one order makes it a known one."""
    orders: tuple[ByteOrder, ByteOrder] = (">", "<")
    codes = {order: int(_binary(head, 3225, "u2", order)) for order in orders}
    for order, code in codes.items():
        if code in SAMPLE_BYTES:
            return order, code
    supported = "codes 1 (IBM), 2 (int32), 3 (int16), 5 (IEEE 32-bit), 8 (int8)"
    for code in codes.values():
        if code in OTHER_CODES:
            raise FormatError(
                "sample format is not supported",
                where=url,
                measured=f"code {code}, {OTHER_CODES[code]}",
                limit=supported,
                remedy="Export the survey again as IBM or IEEE 32-bit float.",
            )
    binary = head[TEXT_BYTES:FILE_HEADER_BYTES]
    if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in binary):
        raise FormatError(
            "file holds text where SEG-Y has its binary header",
            where=url,
            measured=repr(head[:40].decode("latin-1")),
            limit="a SEG-Y file",
            remedy="Give the SEG-Y file itself.",
        )
    raise FormatError(
        "unknown sample format code in bytes 3225-3226",
        where=url,
        measured=f"{codes['>']} (big endian), {codes['<']} (little endian)",
        limit=supported,
        remedy="The file is damaged or no SEG-Y.",
    )


def _revision(head: bytes, order: ByteOrder) -> int:
    """Major revision; some writers store the number itself instead of the fixed-point form 0x0100."""
    value = int(_binary(head, 3501, "u2", order))
    return value >> 8 if value >= 256 else value


def _header_bytes(url: str, head: bytes, order: ByteOrder, revision: int, size_bytes: int) -> int:
    """Size of all headers before the first trace.

    Extended textual headers (rev 1, bytes 3505-3506) are counted, or end with the stanza `((SEG: EndText))`.
    """
    count = int(_binary(head, 3505, "i2", order)) if revision >= 1 else 0
    if count < 0:
        return _end_of_text(url, size_bytes)
    header_bytes = FILE_HEADER_BYTES + count * TEXT_BYTES
    if header_bytes + TRACE_HEADER_BYTES > size_bytes:
        raise FormatError(
            "extended textual headers reach past the end of the file",
            where=url,
            measured=f"{count} headers of {TEXT_BYTES} bytes",
            limit=f"a file of {size_bytes} bytes",
            remedy="The file is cut off, or bytes 3505-3506 are wrong.",
        )
    return header_bytes


def _end_of_text(url: str, size_bytes: int) -> int:
    root, name = split_url(url)
    storage = open_storage(root)
    start = FILE_HEADER_BYTES
    while start + TEXT_BYTES + TRACE_HEADER_BYTES <= size_bytes:
        raw = storage.get_range(name, start, TEXT_BYTES)
        start += TEXT_BYTES
        text = raw.decode("cp037" if is_ebcdic(raw) else "latin-1").lower().replace(" ", "")
        if "((seg:endtext))" in text:
            return start
    raise FormatError(
        "extended textual headers have no end stanza",
        where=url,
        limit="a stanza ((SEG: EndText)), because bytes 3505-3506 hold -1",
        remedy="Write the number of extended headers into bytes 3505-3506.",
    )


def _sample_count(header: bytes, first_trace: bytes, order: ByteOrder, revision: int, url: str) -> int:
    """Samples per trace: binary header, its rev 2 extension, or the first trace header."""
    count = int(_binary(header, 3221, "u2", order))
    if revision >= 2:
        count = int(_binary(header, 3269, "u4", order)) or count
    if count == 0 and len(first_trace) == TRACE_HEADER_BYTES:
        count = int(_binary(first_trace, *TRACE_SAMPLES, order))
    if count == 0:
        raise FormatError(
            "number of samples per trace is zero",
            where=url,
            measured="0 in bytes 3221-3222 and in trace header bytes 115-116",
            remedy="Write the number of samples into the binary header.",
        )
    return count


def _interval(header: bytes, first_trace: bytes, order: ByteOrder, revision: int, url: str) -> float:
    """Sample interval in thousandths: binary header, its rev 2 extension, or the first trace header."""
    interval = float(_binary(header, 3217, "u2", order))
    if revision >= 2:
        extended = float(_binary(header, 3273, "f8", order))
        interval = extended if np.isfinite(extended) and extended > 0 else interval
    if interval == 0 and len(first_trace) == TRACE_HEADER_BYTES:
        interval = float(_binary(first_trace, *TRACE_INTERVAL, order))
    return interval


def _trace_count(file: SegyFile) -> int:
    """Number of whole traces; a file that ends inside one is refused."""
    count, over = divmod(file.size_bytes - len(file.header), file.trace_bytes)
    if over or not count:
        missing = file.trace_bytes - over
        raise FormatError(
            "file does not end with a whole trace",
            where=file.url,
            measured=f"{count} traces and {over} bytes over, {missing} bytes short of one more",
            limit=f"headers of {len(file.header)} bytes and whole traces of {file.trace_bytes} bytes"
            f" ({file.sample_count} samples)",
            remedy="Copy the file again from its source; traces of uneven length are not supported.",
        )
    return count
