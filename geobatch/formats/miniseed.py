"""MiniSEED archives to surveys of waveforms `(station, component, time)`, one set of arrays per sampling rate.

list_source → scan_part (tasks over files) → lay_out → write_piece (tasks over station and shard of time) → finish

An archive is one file, a folder or a prefix of a bucket in any arrangement, the SDS tree and one prefix per day among
them: what a record is, its own header says. The samples of the rate with most of them are `waveform` and `valid`, those
of others carry their rate, such as `waveform_20hz`; `geobatch.earthquake.open_waveforms` opens either by rate. The time
axis is the array's attributes `start` and `sampling_rate_hz`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from geobatch.errors import FormatError, UsageError
from geobatch.fanout import FanOut, in_order, open_fanout
from geobatch.formats.ingestion import Fault, Ingestion, ingesting
from geobatch.formats.miniseed_layout import PLACED, Cut, Group, Layout, lay_out
from geobatch.formats.miniseed_piece import READ_BYTES, Piece, figures, pieces, read_piece, write_piece
from geobatch.formats.miniseed_process import close_decoder, decoder
from geobatch.formats.miniseed_scan import (
    PART_BYTES,
    FileTable,
    Source,
    dump_table,
    list_source,
    load_table,
    parts_of,
    scan_part,
)
from geobatch.formats.miniseed_survey import (
    NUMERICAL_VERSION,
    describe_groups,
    identity_of,
    overall,
    small_arrays,
    suspicious,
)
from geobatch.formats.spec import IngestOptions, IngestRun, Inspected
from geobatch.shards import ArraySpec, shard_grid
from geobatch.storage import absolute_url, open_storage
from geobatch.survey import COMPLETE, SCHEMA

SMALL_BYTES = 32 * 2**20
DECODER_BYTES = 256 * 2**20
INVENTORY_SUFFIXES = (".xml", ".stationxml")
LARGEST_INVENTORY_BYTES = 512 * 2**20


class Options(IngestOptions):
    """Options of MiniSEED.

    Attributes:
        stations: StationXML file or folder with coordinates and sensitivities, besides the `.xml` files of the source.
        start: UTC time such as `2023-02-06T02:00:00` before which nothing is taken.
        end: UTC time from which on nothing is taken.
        chunk: Most samples per chunk, the unit of reading.
        shard: Most samples per shard, the unit of writing; a multiple of `chunk`.
        offset_limit: Fraction of a sample from which a clock's offset from the common grid stands in the quality table.
    """

    stations: str | None = None
    start: str | None = None
    end: str | None = None
    chunk: int = Field(default=2**16, ge=1)
    shard: int = Field(default=2**22, ge=1)
    offset_limit: float = Field(default=0.1, ge=0, le=0.5)

    @field_validator("start", "end")
    @classmethod
    def _is_time(cls, value: str | None) -> str | None:
        _ns(value)
        return value

    @property
    def cut(self) -> Cut:
        """How the arrays are cut."""
        if self.shard % self.chunk:
            raise UsageError(
                "shard is no whole multiple of the chunk", measured=f"shard {self.shard}", limit=self.chunk
            )
        return Cut(self.chunk, self.shard, _ns(self.start), _ns(self.end), self.offset_limit)


def ingest_source(src_url: str, dst_url: str, options: Options, run: IngestRun) -> dict[str, Any]:
    """A summary of the survey written to `dst_url` from the archive at `src_url`.

    Raises:
        NotFoundError: no file is there.
        FormatError: no file holds a MiniSEED record with samples.
        DataError: a file changed while it was read, or nothing lies in the span asked for.
        UsageError: another complete survey is there already, or obspy is not installed.
    """
    src_url, dst_url = absolute_url(src_url), absolute_url(dst_url)
    cut, source = options.cut, list_source(src_url)
    inventories, files = _sort_files(source, options.stations)
    decisive = {
        "format": "miniseed",
        "numerical_version": NUMERICAL_VERSION,
        "source": [src_url, len(source.keys), _digest(source)],
        "stations": [_digest(place) for place in inventories[1:]],
        "options": options.decisive(),
    }
    total = sum(source.sizes)
    progress = _Progress(run.on_progress, len(files))
    with (
        ingesting(dst_url, decisive, overwrite=run.overwrite, sources=source.files) as work,
        open_fanout(small=total <= SMALL_BYTES, num_cpus=run.num_cpus) as fanout,
    ):
        if work.done is not None:
            run.on_progress(len(files), len(files))
            return {"url": dst_url, **work.done}
        try:
            entries, faults = read_inventories(inventories)
            tables, layout = _scan(source, files, cut, fanout, progress, work)
            work.report([*faults, *(fault for table in tables for fault in table.faults), *layout.faults])
            info = _write(source, layout, entries, work, fanout, progress, dst_url)
        finally:
            close_decoder()
        info |= {
            "source": {"url": source.url, "files": len(source.keys), "size_bytes": total, "version": _digest(source)},
            "crs": options.crs or ("EPSG:4326" if entries else None),
        }
        if options.attribution:
            info["attribution"] = options.attribution
        specs = [spec for group in layout.groups for spec in _specs(group, entries)]
        info = work.finish(specs, info)
    return {"url": dst_url, "shape": list(layout.groups[0].waveform.shape), **info}


def inspect_source(src_url: str, options: Options) -> Inspected:
    """What an archive holds, from the same passes as ingest without writing: suspicious things first.

    Returns:
        `suspicious`, `url`, `kind`; per sampling rate (`rates`) the axis and every channel with its span, gaps,
        overlaps, completeness, extremes, plateaus and, of those that were sampled, spectrum; and `faults`, their
        number and the first of them.
    """
    from geobatch.formats.miniseed_inspect import as_survey
    from geobatch.formats.waveform_sample import waveform_spectra

    src_url = absolute_url(src_url)
    source = list_source(src_url)
    inventories, files = _sort_files(source, options.stations)
    with open_fanout(small=sum(source.sizes) <= SMALL_BYTES) as fanout:
        try:
            entries, faults = read_inventories(inventories)
            tables, layout = _scan(source, files, options.cut, fanout, _Progress(lambda done, total: None, 1), None)
            work = pieces(layout.groups)
            function = functools.partial(_measure, source=source, groups=_light(layout.groups))
            found = in_order(fanout, function, work, task_bytes=_task_bytes(layout.groups))
            rates = describe_groups(layout.groups, work, [told for told, _ in found])
            dataset = as_survey(source, layout.groups, entries)
            sampled, doubts = waveform_spectra(dataset, rates)
        finally:
            close_decoder()
    faults += [fault for table in tables for fault in table.faults]
    faults += [*layout.faults, *(fault for _, own in found for fault in own)]
    sentences = [*suspicious(rates, layout.warnings), *doubts]
    if faults:
        sentences.append(f"{len(faults)} faults, such as {faults[0].where}: {faults[0].fault}")
    told = {
        "suspicious": sentences,
        "url": src_url,
        "kind": "miniseed",
        "files": len(source.keys),
        "size_bytes": sum(source.sizes),
        "rates": rates,
        "stations_described": len({entry["channel"] for entry in entries}),
        "faults": {"count": len(faults), "examples": [vars(fault) for fault in faults[:20]]},
    }
    return Inspected(told, dataset, sampled)


def read_inventories(sources: Sequence[Source]) -> tuple[list[dict[str, Any]], list[Fault]]:
    """The channels of all StationXML files, and a fault for each file that is none."""
    entries: list[dict[str, Any]] = []
    faults = []
    for source in sources:
        storage = open_storage(source.url)
        for key, size in zip(source.keys, source.sizes, strict=True):
            if not key.lower().endswith(INVENTORY_SUFFIXES):
                continue
            try:
                if size > LARGEST_INVENTORY_BYTES:
                    raise FormatError("too large", measured=f"{size} bytes")
                entries += decoder().inventory(storage.get(key))
            except FormatError as error:
                faults.append(Fault("file", key, f"no StationXML: {error.measured}"[:300], "left out"))
    return entries, faults


@dataclasses.dataclass
class _Progress:
    """Files done, of which a scanned one is half done and pieces make the other half."""

    report: Callable[[int, int], None]
    files: int

    def scanned(self, done: int, total: int) -> None:
        self.report(self.files * done // (2 * max(total, 1)), self.files)

    def written(self, done: int, total: int) -> None:
        half = self.files // 2
        self.report(half + (self.files - half) * done // max(total, 1), self.files)


def _scan(
    source: Source, files: list[int], cut: Cut, fanout: FanOut, progress: _Progress, work: Ingestion | None
) -> tuple[list[FileTable], Layout]:
    """The tables of all parts of the files, and where everything goes."""
    parts = parts_of(source, files)
    function = functools.partial(scan_part, source=source)
    done = iter(range(1, len(parts) + 1))
    how: Any = {"fanout": fanout, "task_bytes": 4 * PART_BYTES}
    how["on_result"] = lambda part: progress.scanned(next(done), len(parts))
    if work is None:
        tables = in_order(how.pop("fanout"), function, parts, **how)
    else:
        tables = work.remembered("scan", function, parts, dump=dump_table, load=load_table, **how)
    return tables, lay_out(source, parts, tables, cut)


def _write(
    source: Source,
    layout: Layout,
    entries: Sequence[dict[str, Any]],
    work: Ingestion,
    fanout: FanOut,
    progress: _Progress,
    url: str,
) -> dict[str, Any]:
    """Store every piece; the survey's description as far as the samples decide it."""
    groups = layout.groups
    values: dict[str, Any] = {}
    for group in groups:
        values |= small_arrays(group, entries)[1]
    work.create([spec for group in groups for spec in _specs(group, entries)], values)
    parts = pieces(groups)
    done = iter(range(1, len(parts) + 1))
    written = work.write(
        functools.partial(write_piece, source=source, groups=_light(groups), url=url),
        parts,
        fanout=fanout,
        task_bytes=_task_bytes(groups),
        on_piece=lambda piece: progress.written(next(done), len(parts)),
    )
    rates = describe_groups(groups, parts, [part.figures for part in written])
    return {
        "schema": SCHEMA,
        "kind": "waveforms",
        "variable": groups[0].waveform.name,
        "quantity": "counts",
        "state": COMPLETE,
        # Shards that nothing reaches into are not stored: records decades apart would make a million of them.
        "sparse": len(parts) < sum(math.prod(shard_grid(group.waveform)) for group in groups),
        "statistics": overall(rates[0]["channels"]),
        "rates": rates,
        "warnings": suspicious(rates, layout.warnings),
        "numerical_version": NUMERICAL_VERSION,
        "identity": identity_of(work.digests(), groups),
    }


def _measure(piece: Piece, source: Source, groups: Sequence[Group]) -> tuple[dict[str, Any], list[Fault]]:
    canvas = read_piece(piece, source, groups[piece.group])
    return figures(canvas), canvas.faults


def _specs(group: Group, entries: Sequence[dict[str, Any]]) -> list[ArraySpec]:
    return [group.waveform, group.valid, *small_arrays(group, entries)[0]]


def _light(groups: Sequence[Group]) -> tuple[Group, ...]:
    """The groups without their stretches, which every piece brings along as far as it needs them."""
    return tuple(dataclasses.replace(group, placed=np.zeros(0, PLACED)) for group in groups)


def _task_bytes(groups: Sequence[Group]) -> int:
    """Peak memory of one piece: its samples and what encoding copies, one read and its samples, the decoder."""
    cells = max(group.shard * len(group.components) * np.dtype(group.dtype).itemsize for group in groups)
    return 4 * cells + 12 * READ_BYTES + DECODER_BYTES


def _sort_files(source: Source, stations: str | None) -> tuple[list[Source], list[int]]:
    """Where StationXML is, and the numbers of all other files of the source."""
    places = [source] if stations is None else [source, list_source(absolute_url(stations))]
    files = [n for n, key in enumerate(source.keys) if not key.lower().endswith(INVENTORY_SUFFIXES)]
    return places, files


def _digest(source: Source) -> str:
    told = json.dumps([source.keys, source.sizes, source.versions])
    return hashlib.sha256(told.encode()).hexdigest()


def _ns(time: str | None) -> int | None:
    """Nanoseconds since 1970 of a UTC time."""
    if time is None:
        return None
    found = np.datetime64(time.removesuffix("Z"), "ns")
    if np.isnat(found):
        raise ValueError(f"{time} is no UTC time such as 2023-02-06T02:00:00")
    return int(found.astype(np.int64))
