"""SEG-Y files in a bucket or on a disk: what the file header says, checked against the size of the file.

Byte positions are 1-based in the file, as in the SEG-Y rev 1 and rev 2 standards (SEG, 2002 and 2017).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from geobatch.errors import FormatError
from geobatch.formats.segy_file import (
    FILE_HEADER_BYTES,
    TEXT_BYTES,
    TRACE_HEADER_BYTES,
    TRACE_INTERVAL,
    TRACE_SAMPLES,
    binary_field,
    is_ebcdic,
    said_samples,
)
from geobatch.formats.segy_file import SegyFile as SegyFile
from geobatch.formats.segy_file import SegyLayout as SegyLayout
from geobatch.formats.segy_samples import OTHER_CODES, SAMPLE_BYTES, SUPPORTED, ByteOrder
from geobatch.formats.segy_samples import decode_samples as decode_samples
from geobatch.formats.segy_samples import encode_samples as encode_samples
from geobatch.formats.segy_walk import looks_even, walk
from geobatch.storage import Storage, absolute_url, open_storage, split_url

FIXED, VARYING = 1, 0
# The constant of bytes 3297-3300 as a file of either byte order or of swapped pairs has it.
ENDIAN_CONSTANT = b"\x01\x02\x03\x04"
NEWEST_REVISION = 2
Truncated = Literal["refuse", "drop"]
Lengths = Literal["auto", "fixed", "varying"]


def open_segy(url: str, *, truncated: Truncated = "refuse", lengths: Lengths = "auto") -> SegyFile:
    """The description of the SEG-Y file at `url`, from its headers alone unless its traces differ in length.

    Args:
        url: The file.
        truncated: What becomes of a last trace that is cut off: `refuse` the file, or `drop` the trace.
        lengths: Whether traces are of one length, `fixed`, or of the length that bytes 115-116 of each say,
            `varying`, for which the file is followed from header to header. `auto` follows it when the traces of one
            length do not fill the file, or its first trace says another length than the file header.

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
    _check_byte_order(head, order, revision, url)
    header_bytes = _header_bytes(url, head, order, revision, size_bytes)
    header = storage.get_range(name, 0, header_bytes)
    first_trace = storage.get_range(name, header_bytes, min(TRACE_HEADER_BYTES, size_bytes - header_bytes))
    file = SegyFile(
        url=url,
        version=storage.version(name),
        size_bytes=size_bytes,
        header=header,
        byte_order=order,
        revision=revision,
        format_code=code,
        sample_count=_sample_count(header, first_trace, order, revision, url),
        interval_thousandths=_interval(header, first_trace, order, revision),
        trace_count=0,
        extra_headers=_extra_headers(header, order, revision, url),
        trailer=_trailer(storage, name, header, order, revision, size_bytes),
        said_traces=int(binary_field(header, 3513, "u8", order)) if revision >= NEWEST_REVISION else 0,
    )
    return _with_traces(file, first_trace, truncated, lengths)


def _sample_format(head: bytes, url: str) -> tuple[ByteOrder, int]:
    """Byte order and sample format code: a code is below 256, so only one order makes it a known one."""
    orders: tuple[ByteOrder, ByteOrder] = (">", "<")
    codes = {order: int(binary_field(head, 3225, "u2", order)) for order in orders}
    for order, code in codes.items():
        if code in SAMPLE_BYTES:
            return order, code
    for code in codes.values():
        if code in OTHER_CODES:
            raise FormatError(
                "sample format is not supported",
                where=url,
                measured=f"code {code}, {OTHER_CODES[code]}",
                limit=SUPPORTED,
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
        limit=SUPPORTED,
        remedy="The file is damaged or no SEG-Y.",
    )


def _revision(head: bytes, order: ByteOrder) -> int:
    """Major revision; some writers store the number itself instead of the fixed-point form 0x0100.

    A number that no standard has counts as unset: before rev 1 these bytes were anyone's.
    """
    value = int(binary_field(head, 3501, "u2", order))
    major = value >> 8 if value >= 256 else value
    return major if major <= NEWEST_REVISION else 0


def _check_byte_order(head: bytes, order: ByteOrder, revision: int, url: str) -> None:
    constant = head[3296:3300]
    expected = ENDIAN_CONSTANT if order == ">" else ENDIAN_CONSTANT[::-1]
    if revision >= NEWEST_REVISION and any(constant) and constant != expected:
        raise FormatError(
            "byte order constant contradicts the sample format code",
            where=url,
            measured=f"bytes 3297-3300 hold {constant.hex()}",
            limit=f"{expected.hex()}, because bytes 3225-3226 are {'big' if order == '>' else 'little'} endian",
            remedy="The file was byte-swapped in part: export it again.",
        )


def _header_bytes(url: str, head: bytes, order: ByteOrder, revision: int, size_bytes: int) -> int:
    """Size of all that stands before the first trace.

    Extended textual headers (rev 1, bytes 3505-3506) are counted, or end with the stanza `((SEG: EndText))`; a rev 2
    file may say outright where its first trace begins (bytes 3521-3528).
    """
    count = int(binary_field(head, 3505, "i2", order)) if revision >= 1 else 0
    start = int(binary_field(head, 3521, "u8", order)) if revision >= NEWEST_REVISION else 0
    if count < 0 and not start:
        return _end_of_text(url, size_bytes)
    header_bytes = FILE_HEADER_BYTES + max(count, 0) * TEXT_BYTES
    if header_bytes + TRACE_HEADER_BYTES > size_bytes:
        raise FormatError(
            "extended textual headers reach past the end of the file",
            where=url,
            measured=f"{count} headers of {TEXT_BYTES} bytes",
            limit=f"a file of {size_bytes} bytes",
            remedy="The file is cut off, or bytes 3505-3506 are wrong.",
        )
    if start and not header_bytes <= start <= size_bytes - TRACE_HEADER_BYTES:
        raise FormatError(
            "the first trace is said to begin outside the file's traces",
            where=url,
            measured=f"byte {start} in bytes 3521-3528",
            limit=f"{header_bytes} to {size_bytes - TRACE_HEADER_BYTES}",
            remedy="The file is cut off, or bytes 3521-3528 are wrong.",
        )
    return start or header_bytes


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
    count = said_samples(header, order, revision)
    if count == 0 and len(first_trace) == TRACE_HEADER_BYTES:
        count = int(binary_field(first_trace, *TRACE_SAMPLES, order))
    if count == 0:
        raise FormatError(
            "number of samples per trace is zero",
            where=url,
            measured="0 in bytes 3221-3222 and in trace header bytes 115-116",
            remedy="Write the number of samples into the binary header.",
        )
    return count


def _interval(header: bytes, first_trace: bytes, order: ByteOrder, revision: int) -> float:
    """Sample interval in thousandths: binary header, its rev 2 extension, or the first trace header."""
    interval = float(binary_field(header, 3217, "u2", order))
    if revision >= NEWEST_REVISION:
        extended = float(binary_field(header, 3273, "f8", order))
        interval = extended if np.isfinite(extended) and extended > 0 else interval
    if interval == 0 and len(first_trace) == TRACE_HEADER_BYTES:
        interval = float(binary_field(first_trace, *TRACE_INTERVAL, order))
    return interval


def _extra_headers(header: bytes, order: ByteOrder, revision: int, url: str) -> int:
    """Headers of 240 bytes that follow the first of each trace; every trace must have as many."""
    count = int(binary_field(header, 3507, "u4", order)) if revision >= NEWEST_REVISION else 0
    if count > 2**15:
        raise FormatError(
            "too many trace header extensions",
            where=url,
            measured=f"{count} in bytes 3507-3510",
            limit=2**15,
            remedy="Bytes 3507-3510 are wrong.",
        )
    return count


def _trailer(storage: Storage, name: str, header: bytes, order: ByteOrder, revision: int, size_bytes: int) -> bytes:
    """The data trailer of a rev 2 file (bytes 3529-3532 give its 3200-byte records), where there is room for it."""
    records = int(binary_field(header, 3529, "i4", order)) if revision >= NEWEST_REVISION else 0
    length = max(records, 0) * TEXT_BYTES
    if not 0 < length < size_bytes - len(header):
        return b""
    return storage.get_range(name, size_bytes - length, length)


def _with_traces(file: SegyFile, first_trace: bytes, truncated: Truncated, lengths: Lengths) -> SegyFile:
    """The file with the number and the places of its traces; one that ends inside a trace is refused, or cut."""
    room = file.size_bytes - len(file.header) - len(file.trailer)
    count, over = divmod(room, file.trace_bytes)
    if lengths == "varying" or (lengths == "auto" and _may_vary(file, first_trace, count, over)):
        walked = walk(file, drop=truncated == "drop" and lengths == "varying", force=lengths == "varying")
        if walked is not None:
            return walked
    if count and (not over or truncated == "drop"):
        return dataclasses.replace(file, trace_count=count, left_over=over)
    missing = file.trace_bytes - over
    raise FormatError(
        "file does not end with a whole trace",
        where=file.url,
        measured=f"{count} traces and {over} bytes over, {missing} bytes short of one more",
        limit=f"headers of {len(file.header)} bytes and whole traces of {file.trace_bytes} bytes"
        f" ({file.sample_count} samples)",
        remedy="Copy the file again from its source, or drop the last trace with --set truncated=drop."
        if count
        else "The file is cut off, or its header gives a wrong number of samples.",
    )


def _may_vary(file: SegyFile, first_trace: bytes, count: int, over: int) -> bool:
    """True when the file may hold traces of different length: following its headers then decides."""
    flag = int(binary_field(file.header, 3503, "u2", file.byte_order))
    if file.revision >= 1 and flag == FIXED:
        return False
    if over or not count:
        return not looks_even(file, count, over)
    said = int(binary_field(first_trace, *TRACE_SAMPLES, file.byte_order))
    return file.revision >= 1 and said not in (0, file.sample_count)
