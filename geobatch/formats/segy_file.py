"""A SEG-Y file that was opened: where its traces lie, and runs of them read by byte range.

Byte positions are 1-based as in the SEG-Y rev 1 standard (SEG, 2002); trace header positions count from the trace,
binary header positions from the file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from geobatch.errors import UsageError
from geobatch.formats.segy_samples import SAMPLE_BYTES, ByteOrder, decode_samples
from geobatch.storage import is_remote, open_storage, split_url

TEXT_BYTES = 3200
FILE_HEADER_BYTES = 3600
TRACE_HEADER_BYTES = 240
FEET = 2

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
        offset: Offset between source and receiver, or an angle, of pre-stack data, 4-byte integer.
    """

    inline: int = 189
    crossline: int = 193
    cdp_x: int = 181
    cdp_y: int = 185
    coordinate_scalar: int = 71
    offset: int = 37

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
        url: Absolute URL of the file, or of the folder, prefix or pattern of several.
        version: ETag, or size and modification time.
        size_bytes: Size of the file.
        header: Textual, binary and extended textual headers, raw: all that stands before the first trace.
        byte_order: `>` as the standard says, or `<` as some writers do.
        revision: Major revision of the standard, 0 when the field is unset.
        format_code: Sample format code, bytes 3225-3226.
        sample_count: Samples per trace; of the longest when lengths vary.
        interval_thousandths: Sample interval in microseconds or, in depth, thousandths of the depth unit.
        trace_count: Traces in the file.
        extra_headers: 240-byte headers after the first one of each trace (rev 2, bytes 3507-3510).
        trailer: What follows the traces (rev 2 data trailer), raw.
        left_over: Bytes at the end that make no whole trace and are left out.
        said_traces: Number of traces that a rev 2 header gives in bytes 3513-3520, 0 for none.
        starts: First byte of each trace and the end of the last, int64, where lengths vary: 8 bytes a trace.
        parts: The files that this one stands for, in order, when there are several.
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
    extra_headers: int = 0
    trailer: bytes = dataclasses.field(default=b"", repr=False)
    left_over: int = 0
    said_traces: int = 0
    starts: npt.NDArray[np.int64] | None = dataclasses.field(default=None, repr=False, compare=False)
    parts: tuple[SegyFile, ...] = ()

    @property
    def header_bytes(self) -> int:
        """Headers of one trace."""
        return TRACE_HEADER_BYTES * (1 + self.extra_headers)

    @property
    def trace_bytes(self) -> int:
        """Headers and samples of one trace, of the longest when lengths vary."""
        return self.header_bytes + self.sample_count * SAMPLE_BYTES[self.format_code]

    @property
    def uneven(self) -> bool:
        """True when traces differ in length."""
        return self.starts is not None or any(part.uneven for part in self.parts)

    @property
    def in_feet(self) -> bool:
        """True when the binary header gives lengths in feet (bytes 3255-3256)."""
        return binary_field(self.header, 3255, "i2", self.byte_order) == FEET

    @property
    def text(self) -> str:
        """The textual and extended textual headers, decoded, in lines of 80 characters."""
        raw = self.header[:TEXT_BYTES] + self.header[FILE_HEADER_BYTES:]
        text = raw.decode("cp037" if is_ebcdic(raw) else "latin-1")
        return "\n".join(text[i : i + 80].rstrip() for i in range(0, len(text), 80))

    def read_traces(self, first: int, count: int) -> npt.NDArray[np.uint8]:
        """Traces `first` to `first + count`, `(trace, trace_bytes)` uint8, by one ranged read of each file.

        Where lengths vary, shorter traces end in zeros.
        """
        if self.parts:
            return self._read_parts(first, count)
        root, name = split_url(self.url)
        if self.starts is None:
            start = len(self.header) + first * self.trace_bytes
            raw = open_storage(root).get_range(name, start, count * self.trace_bytes)
            return np.frombuffer(raw, np.uint8).reshape(count, self.trace_bytes)
        starts = self.starts[first : first + count + 1]
        raw = open_storage(root).get_range(name, int(starts[0]), int(starts[-1] - starts[0]))
        traces = np.zeros((count, self.trace_bytes), np.uint8)
        traces[np.arange(self.trace_bytes) < np.diff(starts)[:, None]] = np.frombuffer(raw, np.uint8)
        return traces

    def read_runs(self, first: int, count: int, step: int) -> Iterator[npt.NDArray[np.uint8]]:
        """As `read_traces`, in runs of `step` traces; from a bucket several are read at a time."""
        starts = range(first, first + count, step)
        counts = [min(step, first + count - start) for start in starts]
        if not is_remote(self.url):
            # Memory of a run is used again for the next one: a page that is new each time costs as much as its bytes.
            yield from map(self.read_traces, starts, counts)
            return
        with ThreadPoolExecutor(self.readers) as readers:
            yield from readers.map(self.read_traces, starts, counts)

    @property
    def readers(self) -> int:
        """Ranges to read at a time: a bucket takes its time for each, a file system only for their bytes."""
        return 4 if is_remote(self.url) else 2

    def decode(self, traces: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """The samples of raw traces, `(trace, sample)` float32; NaN after the end of a shorter trace."""
        samples = decode_samples(traces[:, self.header_bytes :], self.format_code, self.byte_order)
        if self.uneven:
            samples[np.arange(self.sample_count) >= self.lengths(traces)[:, None]] = np.nan
        return samples

    def lengths(self, headers: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Samples of each trace, from raw traces or their headers."""
        if not self.uneven:
            return np.full(len(headers), self.sample_count, np.int64)
        said = header_field(headers, *TRACE_SAMPLES, self.byte_order).astype(np.int64)
        return np.where(said == 0, said_samples(self.header, self.byte_order, self.revision), said)

    def trace_name(self, ordinal: int) -> str:
        """How a trace is called in a message: file and ordinal in it, from 0."""
        for part in self.parts:
            if ordinal < part.trace_count:
                return part.trace_name(ordinal)
            ordinal -= part.trace_count
        return f"{PurePosixPath(self.url).name} trace {ordinal}"

    def _read_parts(self, first: int, count: int) -> npt.NDArray[np.uint8]:
        found = []
        for part in self.parts:
            here = min(count, part.trace_count - first)
            if here > 0:
                found.append(part.read_traces(first, here))
                count, first = count - here, 0
            else:
                first -= part.trace_count
            if not count:
                break
        return found[0] if len(found) == 1 else np.concatenate(found)


def is_ebcdic(raw: bytes) -> bool:
    """True when a textual header is EBCDIC (code page 037) rather than ASCII: it has more EBCDIC than ASCII blanks."""
    return raw.count(0x40) > raw.count(0x20)


def binary_field(header: bytes, byte: int, kind: str, order: ByteOrder) -> int | float:
    """One field of the binary header, by its 1-based byte in the file."""
    value: int | float = np.frombuffer(header, np.dtype(order + kind), count=1, offset=byte - 1)[0].item()
    return value


def said_samples(header: bytes, order: ByteOrder, revision: int) -> int:
    """Samples per trace by the binary header or its rev 2 extension; 0 where neither says."""
    count = int(binary_field(header, 3221, "u2", order))
    if revision >= 2:
        count = int(binary_field(header, 3269, "u4", order)) or count
    return count


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
