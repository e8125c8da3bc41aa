"""The headers of a MiniSEED archive, reduced to stretches: records of one channel that follow each other without a gap.

A stretch is small in the table and small to read: the table of a station-year has some ten thousand rows, and a piece
of the survey reads the stretches that it needs by their bytes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from geobatch.errors import NotFoundError
from geobatch.formats.ingestion import Fault
from geobatch.formats.miniseed_headers import NS_PER_S
from geobatch.formats.miniseed_records import Records, Unusable, read_records, runs
from geobatch.formats.versions import versions_of
from geobatch.storage import join_url, open_storage, split_url

PART_BYTES = 64 * 2**20
LONGEST_RECORD_BYTES = 2**20
STRETCH_BYTES = 2**18
# As obspy joins records: half a sample.
JOIN_SAMPLES = 0.5
SAME_RATE = 1e-4

STRETCH = np.dtype(
    [
        ("channel", "i4"),
        ("rate", "f8"),
        ("header_rate", "f8"),
        ("kind", "i4"),
        ("start_ns", "i8"),
        ("first", "i8"),
        ("samples", "i8"),
        ("records", "i8"),
        ("offset", "i8"),
        ("end", "i8"),
    ]
)
"""One row a stretch: number of its channel, nominal and recorded samples per second, kind of samples, time of the first
sample of the segment it belongs to, its own first sample in that segment, its samples, records, first byte and end."""


@dataclass(frozen=True)
class Source:
    """The files of an archive.

    Attributes:
        url: Root of the keys.
        keys: Files, sorted.
        sizes: Bytes of each.
        versions: What tells that a file changed.
    """

    url: str
    keys: tuple[str, ...]
    sizes: tuple[int, ...]
    versions: tuple[str, ...]

    @property
    def files(self) -> list[tuple[str, str]]:
        """URL and version of every file."""
        return [(join_url(self.url, key), version) for key, version in zip(self.keys, self.versions, strict=True)]

    def where(self, number: int) -> str:
        """The name of a file in messages."""
        return self.keys[number]


@dataclass(frozen=True)
class Part:
    """A part of a file that one task scans: records that begin from `start` to before `end`."""

    file: int
    start: int
    end: int


@dataclass
class FileTable:
    """What the headers of a part say.

    Attributes:
        channels: `NET.STA.LOC.CHA` of each channel number.
        stretches: Rows of `STRETCH`, in the order of the file per channel.
        faults: What is unusable.
    """

    channels: list[str] = field(default_factory=list)
    stretches: npt.NDArray[Any] = field(default_factory=lambda: np.zeros(0, STRETCH))
    faults: list[Fault] = field(default_factory=list)


def list_source(url: str) -> Source:
    """The files at `url`: one file, or all of a folder or prefix.

    Raises:
        NotFoundError: there are none.
    """
    entries = sorted(entry for entry in open_storage(url).list() if not _hidden(entry[0]))
    if not entries:
        root, name = split_url(url)
        try:
            entries = [(name, open_storage(root).size(name))]
        except (NotFoundError, IsADirectoryError):
            raise NotFoundError("no file there", where=url, remedy="Check the URL.") from None
        url = root
    keys = tuple(key for key, _ in entries)
    return Source(
        url, keys, tuple(size for _, size in entries), tuple(versions_of([join_url(url, key) for key in keys]))
    )


def parts_of(source: Source, numbers: Sequence[int]) -> list[Part]:
    """The parts of these files, of 64 MiB at most."""
    return [
        Part(number, start, min(start + PART_BYTES, source.sizes[number]))
        for number in numbers
        for start in range(0, max(source.sizes[number], 1), PART_BYTES)
    ]


def scan_part(part: Part, source: Source) -> FileTable:
    """The stretches of a part, and a fault for every run of bytes in it that gives no samples."""
    size, name = source.sizes[part.file], source.where(part.file)
    if size == 0:
        return FileTable(faults=[Fault("file", name, "zero bytes", "left out")])
    length = min(part.end + LONGEST_RECORD_BYTES, size) - part.start
    data = open_storage(source.url).get_range(source.keys[part.file], part.start, length)
    records, unusable = read_records(data, part.start, limit=part.end - part.start)
    if not len(records) and len(unusable) == 1 and not unusable[0].count:
        return FileTable(faults=[Fault("file", name, unusable[0].fault, "left out")])
    channels = np.unique(records.channel[runs(records.channel)]).tolist()
    rows = [stretches(records, np.flatnonzero(records.channel == name), n) for n, name in enumerate(channels)]
    table = np.concatenate(rows) if rows else np.zeros(0, STRETCH)
    return FileTable(channels, table, [_fault(name, bad) for bad in unusable])


def stretches(records: Records, rows: npt.NDArray[np.int64], channel: int) -> npt.NDArray[Any]:
    """Rows of `STRETCH` for the records of one channel.

    Records belong to one segment while each begins within half a sample of where the segment's start, its rate and
    the samples before it say. What drifts further begins a segment of its own: no sample is further off its time.
    """
    own = records.take(rows)
    rate = nominal_rates(own.rate)
    before = np.concatenate(([0], np.cumsum(own.samples)))[:-1]
    segment = _segments(own, rate, before)
    begins = np.flatnonzero(np.diff(segment, prepend=-1))
    first = before - before[begins][segment]
    # A stretch is a bounded number of bytes of one segment.
    in_segment = np.arange(len(own)) - begins[segment]
    cut = in_segment // max(1, STRETCH_BYTES // int(own.length.max()))
    edges = np.flatnonzero((np.diff(segment, prepend=-1) != 0) | (np.diff(cut, prepend=-1) != 0))
    table = np.zeros(len(edges), STRETCH)
    ends = np.concatenate((edges[1:], [len(own)]))
    table["channel"] = channel
    table["rate"], table["header_rate"], table["kind"] = rate[edges], own.rate[edges], own.kind[edges]
    table["start_ns"], table["first"] = own.start_ns[begins][segment[edges]], first[edges]
    table["samples"] = np.add.reduceat(own.samples, edges)
    table["records"] = ends - edges
    table["offset"] = np.minimum.reduceat(own.offset, edges)
    table["end"] = np.maximum.reduceat(own.offset + own.length, edges)
    return table


def nominal_rates(rates: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Each rate, or the whole number of samples per second, or of seconds per sample, within 1e-4 of it."""
    told, which = np.unique(rates, return_inverse=True)
    # Rounded first, so that the nominal rate of a nominal rate is itself.
    rates = np.array([float(f"{rate:.6g}") for rate in told.tolist()])[which]
    whole = np.maximum(np.round(rates), 1)
    period = np.maximum(np.round(1 / rates), 1)
    near = np.abs(rates - whole) <= SAME_RATE * rates
    slow = np.abs(1 / rates - period) <= SAME_RATE / rates
    return np.where(near, whole, np.where(slow, 1 / period, rates))


def _segments(own: Records, rate: npt.NDArray[np.float64], before: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The number of the segment of each record, from 0."""
    breaks = np.zeros(len(own), bool)
    breaks[0] = True
    breaks[1:] = (np.diff(rate) != 0) | (np.diff(own.kind) != 0)
    while True:
        segment = np.cumsum(breaks) - 1
        begins = np.flatnonzero(breaks)[segment]
        expected = (before - before[begins]) * (NS_PER_S / rate)
        off = np.abs(own.start_ns - own.start_ns[begins] - expected) * rate > JOIN_SAMPLES * NS_PER_S
        if not off.any():
            return segment
        # Every place where the step itself is off, and the first record of each segment that has drifted off.
        steps = np.diff(own.start_ns) - own.samples[:-1] * (NS_PER_S / rate[:-1])
        jumps = np.concatenate(([False], np.abs(steps) * rate[1:] > JOIN_SAMPLES * NS_PER_S))
        rows = np.flatnonzero(off)
        firsts = rows[np.unique(segment[rows], return_index=True)[1]]
        breaks = breaks | jumps
        breaks[firsts] = True


def dump_table(table: FileTable) -> bytes:
    """The table as bytes."""
    sink = io.BytesIO()
    text = json.dumps({"channels": table.channels, "faults": [vars(fault) for fault in table.faults]})
    np.savez(sink, stretches=table.stretches, text=np.frombuffer(text.encode(), np.uint8))
    return sink.getvalue()


def load_table(data: bytes) -> FileTable:
    """The table again."""
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        text = json.loads(stored["text"].tobytes())
        return FileTable(text["channels"], stored["stretches"], [Fault(**fault) for fault in text["faults"]])


def _fault(name: str, bad: Unusable) -> Fault:
    where = f"{name} bytes {bad.start}-{bad.end - 1}"
    if bad.count > 1:
        where += f" ({bad.count} records)"
    return Fault("record", where, bad.fault, "left out")


def _hidden(key: str) -> bool:
    return any(part.startswith((".", "_geobatch")) for part in key.split("/"))
