"""One piece of a survey of waveforms: one station in one shard of time, read, placed, counted and stored."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from geobatch.errors import DataError, FormatError
from geobatch.formats.ingestion import Fault, Written, store_shard
from geobatch.formats.miniseed_layout import NO_DATA, Group
from geobatch.formats.miniseed_process import decoder
from geobatch.formats.miniseed_records import Records, read_records
from geobatch.formats.miniseed_scan import Source
from geobatch.moments import merge_moments, partial_moments
from geobatch.storage import open_storage

Samples = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

# A gap this small between wanted records costs less to read than another request.
GAP_BYTES = 128 * 2**10
READ_BYTES = 16 * 2**20
# So many equal samples at the largest or smallest value are a clipped wave, not a quiet one.
PLATEAU_SAMPLES = 4
BLOCK_SAMPLES = 2**18
COUNTS = ("identical", "healed", "conflicting", "unusable", "undecoded")


@dataclass(frozen=True)
class Piece:
    """Where a piece goes and what it is made of.

    Attributes:
        group: Number of its group.
        station: Row of its station.
        column: Shard of time.
        placed: Rows of `PLACED` that reach into it.
    """

    group: int
    station: int
    column: int
    placed: npt.NDArray[Any]


@dataclass
class Canvas:
    """The samples of a piece as they are placed.

    Attributes:
        group: What the piece belongs to.
        origin: First sample of the piece on the group's axis.
        samples: `(component, sample)`, fill value where nothing is placed.
        valid: True where something is.
        counts: Per component, the numbers named by `COUNTS`.
        faults: What was wrong.
    """

    group: Group
    origin: int
    samples: Samples
    valid: Mask
    counts: npt.NDArray[np.int64]
    faults: list[Fault] = field(default_factory=list)


def pieces(groups: Sequence[Group]) -> list[Piece]:
    """Every piece that has samples, in the order of groups, stations and time."""
    found: dict[tuple[int, int, int], list[int]] = {}
    for number, group in enumerate(groups):
        first = np.maximum(group.placed["at"], 0) // group.shard
        last = np.minimum(group.placed["at"] + group.placed["samples"], group.samples) - 1
        columns = zip(group.placed["station"].tolist(), first.tolist(), (last // group.shard).tolist(), strict=True)
        for row, (station, start, end) in enumerate(columns):
            for column in range(start, end + 1):
                found.setdefault((number, station, column), []).append(row)
    return [Piece(*key, groups[key[0]].placed[rows]) for key, rows in sorted(found.items())]


def write_piece(piece: Piece, source: Source, groups: Sequence[Group], url: str) -> Written:
    """Store one shard of samples and one of validity; the figures are statistics per component."""
    group = groups[piece.group]
    canvas = read_piece(piece, source, group)
    index = (piece.station, 0, piece.column)
    # Samples wait for storage, which the rest need not.
    with ThreadPoolExecutor(1) as storing:
        samples = storing.submit(store_shard, url, group.waveform, index, canvas.samples[None])
        told = figures(canvas)
        valid = store_shard(url, group.valid, index, canvas.valid[None])
    return Written((samples.result(), valid), tuple(canvas.faults), told)


def read_piece(piece: Piece, source: Source, group: Group) -> Canvas:
    """The samples of a piece; of several for the same time the first one in the order of files and bytes."""
    origin = piece.column * group.shard
    shape = (len(group.components), min(group.shard, group.samples - origin))
    fill: Any = NO_DATA if group.dtype == "int32" else np.nan
    counts = np.zeros((shape[0], len(COUNTS)), np.int64)
    canvas = Canvas(group, origin, np.full(shape, fill, group.dtype), np.zeros(shape, bool), counts)
    for file in np.unique(piece.placed["file"]):
        rows = piece.placed[piece.placed["file"] == file]
        for span, data in _spans(source, int(file), rows):
            base = int(span["offset"][0])
            records, _ = read_records(data, base)
            for channel in np.unique(span["channel"]):
                own = span[span["channel"] == channel]
                _place_channel(canvas, source.where(int(file)), data, base, records, own)
    _drop_unusable(canvas)
    return canvas


def figures(canvas: Canvas) -> dict[str, Any]:
    """Per component that has samples: moments, extremes, samples in plateaus at the extremes, and counts."""
    found: dict[str, Any] = {"samples": int(np.count_nonzero(canvas.valid))}
    for number, code in enumerate(canvas.group.components):
        valid = canvas.valid[number]
        if not valid.any() and not canvas.counts[number].any():
            continue
        counted = dict(zip(COUNTS, canvas.counts[number].tolist(), strict=True))
        found[code] = {**_moments(canvas.samples[number], valid), **counted}
    return found


def _spans(source: Source, file: int, rows: npt.NDArray[Any]) -> Iterator[tuple[npt.NDArray[Any], bytes]]:
    """The wanted stretches of a file and the bytes from the first to the last of them, some megabytes at a time."""
    storage = open_storage(source.url)
    order = np.argsort(rows["offset"], kind="stable")
    rows = rows[order]
    start = 0
    for row in range(1, len(rows) + 1):
        begin, end = int(rows["offset"][start]), int(rows["end"][start:row].max())
        if row < len(rows):
            near = rows["offset"][row] - end <= GAP_BYTES
            if near and max(end, int(rows["end"][row])) - begin <= READ_BYTES:
                continue
        yield rows[start:row], storage.get_range(source.keys[file], begin, end - begin)
        start = row


def _place_channel(
    canvas: Canvas, where: str, data: bytes, base: int, records: Records, rows: npt.NDArray[Any]
) -> None:
    """Decode the records of one channel's stretches and place them; `data` begins at byte `base` of the file."""
    name = canvas.group.names[int(rows["channel"][0])]
    component = int(rows["component"][0])
    wanted = _wanted(records, name, rows, where)
    body = _gather(data, wanted, base)
    try:
        values, bad = decoder().decode(body, wanted.start_ns, wanted.samples, wanted.length)
    except FormatError as error:
        canvas.counts[component, COUNTS.index("undecoded")] += int(rows["samples"].sum())
        fault = f"{error.what}; {error.measured}"
        canvas.faults.append(Fault("file", f"{where} {name}", fault, "its samples here left out"))
        return
    edges = np.concatenate(([0], np.cumsum(wanted.samples)))
    begins = np.concatenate(([0], np.cumsum(rows["records"])))
    for row, first, end in zip(rows, begins[:-1].tolist(), begins[1:].tolist(), strict=True):
        for low, high in _between(first, end, sorted(record for record in bad if first <= record < end)):
            at = int(row["at"] + edges[low] - edges[first])
            _place(canvas, where, name, component, at, values[edges[low] : edges[high]])
    for record, fault in sorted(bad.items()):
        offset, length = int(wanted.offset[record]), int(wanted.length[record])
        canvas.faults.append(Fault("record", f"{where} bytes {offset}-{offset + length - 1}", fault, "left out"))
        canvas.counts[component, COUNTS.index("undecoded")] += int(wanted.samples[record])


def _wanted(records: Records, name: str, rows: npt.NDArray[Any], where: str) -> Records:
    """The records of one channel's stretches, in their order."""
    own = np.flatnonzero(records.channel == name)
    first, end = (np.searchsorted(records.offset[own], rows[edge]) for edge in ("offset", "end"))
    wanted = records.take(np.concatenate([own[i:j] for i, j in zip(first, end, strict=True)]))
    if (end - first != rows["records"]).any() or wanted.samples.sum() != rows["samples"].sum():
        raise DataError("file changed while it was being read", where=where, measured=f"{len(wanted)} records")
    return wanted


def _gather(data: bytes, records: Records, base: int) -> bytes | memoryview:
    """The records one after the other; no copy of what already is."""
    starts, ends = records.offset - base, records.offset - base + records.length
    view = memoryview(data)
    if (starts[1:] == ends[:-1]).all():
        return view[int(starts[0]) : int(ends[-1])]
    return b"".join(view[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True))


def _between(first: int, end: int, lost: list[int]) -> list[tuple[int, int]]:
    """The runs of records from `first` to before `end` without the lost ones."""
    edges = [first - 1, *lost, end]
    return [(low + 1, high) for low, high in itertools.pairwise(edges) if high > low + 1]


def _place(canvas: Canvas, where: str, name: str, component: int, at: int, values: Samples) -> None:
    """Put samples where there are none yet, and say where they differ from what is there."""
    length = canvas.samples.shape[1]
    low, high = max(at, canvas.origin), min(at + len(values), canvas.origin + length)
    if low >= high:
        return
    part = slice(low - canvas.origin, high - canvas.origin)
    new = values[low - at : high - at]
    held, valid = canvas.samples[component, part], canvas.valid[component, part]
    if not valid.any():
        held[:], valid[:] = new, True
        return
    same = (held == new) | ((held != held) & (new != new))
    counts = canvas.counts[component]
    counts[COUNTS.index("identical")] += int((valid & same).sum())
    if (valid & ~same).any():
        _tell_conflicts(canvas, f"{name} {{}} in {where}", component, low, valid, valid & ~same)
    held[~valid] = new[~valid]
    valid[:] = True


def _tell_conflicts(canvas: Canvas, where: str, component: int, low: int, overlap: Mask, differs: Mask) -> None:
    """Count the samples that differ; a fault for each overlap of more than one sample in which some do.

    One sample at the end of a record is a clock that slipped, which every reader lives with.
    """
    at = np.flatnonzero(overlap)
    for run in np.split(at, np.flatnonzero(np.diff(at) > 1) + 1):
        count = int(differs[run].sum())
        if count and len(run) == 1:
            canvas.counts[component, COUNTS.index("healed")] += 1
        elif count:
            canvas.counts[component, COUNTS.index("conflicting")] += count
            fault = f"{count} of {len(run)} samples differ from those already there for the same time"
            place = where.format(canvas.group.time(low + int(run[0])))
            canvas.faults.append(Fault("overlap", place, fault, "left out, the first kept"))


def _drop_unusable(canvas: Canvas) -> None:
    """Samples that stand for missing values themselves become missing: NaN, infinity, and -2^31 among integers."""
    for component in range(len(canvas.samples)):
        for start in range(0, canvas.samples.shape[1], BLOCK_SAMPLES):
            part = slice(start, start + BLOCK_SAMPLES)
            values, valid = canvas.samples[component, part], canvas.valid[component, part]
            odd = values == NO_DATA if values.dtype.kind == "i" else ~np.isfinite(values)
            if odd.any() and (odd := odd & valid).any():
                canvas.counts[component, COUNTS.index("unusable")] += int(odd.sum())
                valid[odd] = False
                values[odd] = NO_DATA if values.dtype.kind == "i" else np.nan


def _moments(samples: Samples, valid: Mask) -> dict[str, Any]:
    """Count, mean, squared deviations and extremes of the valid samples, and how many lie in plateaus there."""
    parts = [slice(start, start + BLOCK_SAMPLES) for start in range(0, len(samples), BLOCK_SAMPLES)]
    found = [partial_moments(samples[part] if valid[part].all() else samples[part][valid[part]]) for part in parts]
    total = functools.reduce(merge_moments, found)
    if not total.count:
        return {"count": 0}
    at = {
        "min": [part for part, own in zip(parts, found, strict=True) if own.minimum == total.minimum],
        "max": [part for part, own in zip(parts, found, strict=True) if own.maximum == total.maximum],
    }
    return {
        "count": total.count,
        "mean": total.mean,
        "squares": total.squares,
        "min": total.minimum,
        "max": total.maximum,
        "at_min": _plateaus(samples, valid, total.minimum, at["min"]),
        "at_max": _plateaus(samples, valid, total.maximum, at["max"]),
    }


def _plateaus(samples: Samples, valid: Mask, value: float, parts: Sequence[slice]) -> int:
    """How many samples stand in runs of at least `PLATEAU_SAMPLES` of this value, which only these parts hold."""
    at = np.concatenate([part.start + np.flatnonzero(valid[part] & (samples[part] == value)) for part in parts])
    if len(at) < PLATEAU_SAMPLES:
        return 0
    lengths = np.diff(np.concatenate(([0], np.flatnonzero(np.diff(at) > 1) + 1, [len(at)])))
    return int(lengths[lengths >= PLATEAU_SAMPLES].sum())
