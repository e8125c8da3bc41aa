"""SEG-Y to survey: scan the headers, place the traces, write every column of shards; the file itself is never copied.

open_source → scan (tasks over slabs) → judge, arrange → write_column (tasks over columns) → finish_group
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from geobatch.fanout import FanOut, in_order, open_fanout
from geobatch.formats.ingestion import Ingestion, Written, ingesting, store_shard
from geobatch.formats.segy import Lengths, Truncated
from geobatch.formats.segy_file import SegyFile, SegyLayout
from geobatch.formats.segy_geometry import Duplicates
from geobatch.formats.segy_meaning import Domain, Quantity, SampleUnit, judge
from geobatch.formats.segy_placement import Arrangement, GatherAxis, Geometry, arrange
from geobatch.formats.segy_quality import faults
from geobatch.formats.segy_scan import TraceTable, dump_table, load_table, merge_tables, scan_slab, slabs
from geobatch.formats.segy_several import open_source
from geobatch.formats.segy_survey import (
    NUMERICAL_VERSION,
    Size3,
    describe,
    identity_of,
    sample_axis,
    small_arrays,
    volume_specs,
)
from geobatch.formats.spec import IngestOptions, IngestRun, Inspected
from geobatch.shards import ArraySpec, require_whole_multiple, shard_grid, shard_indices, shard_region
from geobatch.storage import absolute_url
from geobatch.survey import VOLUME_AXES

SMALL_FILE_BYTES = 64 * 2**20
SLAB_BYTES = 32 * 2**20
READERS = 4
RUN_BYTES = 8 * 2**20
# A gap this small between wanted traces costs less to read than another request.
GAP_BYTES = 128 * 2**10


@dataclass(frozen=True)
class Column:
    """One column of shards: all samples of a range of inlines and crosslines, of gathers, or of traces.

    Attributes:
        index: Position in the shard grid, on every axis but the samples'.
        traces: Ordinal of each trace in the file, on the same axes, int32, -1 where there is none.
    """

    index: tuple[int, ...]
    traces: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Target:
    """Where columns go: the survey's URL and the two sharded arrays."""

    url: str
    volume: ArraySpec
    headers: ArraySpec


@dataclass
class _Passes:
    """Progress over the two passes that every trace takes."""

    report: Callable[[int, int], None]
    traces: int
    passed: int = 0

    def add(self, traces: int) -> None:
        self.passed += traces
        self.report(self.passed // 2, self.traces)


class Options(IngestOptions):
    """Options of SEG-Y: single files, and folders, prefixes and patterns of files with one sample axis.

    Attributes:
        inline_byte: First trace header byte of the inline number; others are tried when 189 and 193 make no grid.
        crossline_byte: First trace header byte of the crossline number.
        x_byte: First trace header byte of cdp_x.
        y_byte: First trace header byte of cdp_y.
        offset_byte: First trace header byte of the offset, or of the angle, of pre-stack data.
        geometry: `grid` (inline, crossline), `gathers` (inline, crossline, offset), `traces` (one after another), or
            `auto`, the first of them that the headers support.
        gather_axis: `offset` or `angle`, the third axis of gathers.
        offset_bin: Width of the bins of that axis; its numbers as they are when not given.
        duplicates: Of several live traces in one place keep the `first` or the `last`, or `refuse` the file.
        truncated: `refuse` a file that ends inside a trace, or `drop` that trace.
        lengths: `fixed` or `varying` length of traces; `auto` follows trace headers when one length does not fit.
        quantity: `amplitude` or `velocity`.
        domain: `time` or `depth`.
        sample_interval: Step of the vertical axis in `sample_unit`.
        sample_unit: `ms`, `m` or `ft`.
        sample_start: First value of the vertical axis.
        chunk: Unit of reading `(inline, crossline, sample)`; gathers and traces are cut into as many samples.
        shard: Unit of writing, a multiple of `chunk`.
    """

    inline_byte: int = SegyLayout.inline
    crossline_byte: int = SegyLayout.crossline
    x_byte: int = SegyLayout.cdp_x
    y_byte: int = SegyLayout.cdp_y
    offset_byte: int = SegyLayout.offset
    geometry: Geometry = "auto"
    gather_axis: GatherAxis = "offset"
    offset_bin: float | None = Field(default=None, gt=0)
    duplicates: Duplicates = "first"
    truncated: Truncated = "refuse"
    lengths: Lengths = "auto"
    quantity: Quantity | None = None
    domain: Domain | None = None
    sample_interval: float | None = None
    sample_unit: SampleUnit | None = None
    sample_start: float | None = None
    chunk: Size3 = (64, 64, 64)
    shard: Size3 = (128, 128, 128)

    @property
    def layout(self) -> SegyLayout:
        """Where the file keeps its geometry."""
        return SegyLayout(self.inline_byte, self.crossline_byte, self.x_byte, self.y_byte, offset=self.offset_byte)

    @property
    def arrangement(self) -> Arrangement:
        """What its traces are to become; other header bytes are tried only in place of the standard's."""
        standard = (self.inline_byte, self.crossline_byte) == (SegyLayout.inline, SegyLayout.crossline)
        return Arrangement(self.geometry, self.duplicates, self.gather_axis, self.offset_bin, detect=standard)

    @property
    def meaning(self) -> dict[str, Any]:
        """What the numbers are, as `judge` takes it."""
        return {
            "quantity": self.quantity,
            "domain": self.domain,
            "sample_interval": self.sample_interval,
            "sample_unit": self.sample_unit,
        }


def ingest(
    src_url: str,
    dst_url: str,
    *,
    layout: SegyLayout | None = None,
    overwrite: bool = False,
    num_cpus: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    **options: Any,
) -> dict[str, Any]:
    """A summary of the survey written to `dst_url` from the SEG-Y file at `src_url`.

    Args:
        src_url: SEG-Y file on S3 or a file system, either byte order, any trace order; or a folder, prefix or pattern.
        dst_url: Where the survey goes; it opens only after the last write.
        layout: Trace header positions, SEG-Y rev 1 by default.
        overwrite: Replace a complete survey.
        num_cpus: CPUs of the local Ray cluster when this process is connected to none.
        on_progress: Called with traces done and traces in all; a trace is read twice and done after the second time.
        **options: The fields of `Options`, by their names.

    Raises:
        NotFoundError: no such file.
        FormatError: the file is damaged or of an unsupported format.
        GeometryError: its traces do not make what was asked for, or start at different times.
        UsageError: a complete survey is there already, or options contradict each other.
    """
    places = (
        {}
        if layout is None
        else {
            "inline_byte": layout.inline,
            "crossline_byte": layout.crossline,
            "x_byte": layout.cdp_x,
            "y_byte": layout.cdp_y,
            "offset_byte": layout.offset,
        }
    )
    run = IngestRun(overwrite, num_cpus, on_progress)
    return ingest_source(src_url, dst_url, _options({**places, **options}), run)


def ingest_source(src_url: str, dst_url: str, options: Options, run: IngestRun) -> dict[str, Any]:
    """As `ingest`, told as every format is."""
    src_url, dst_url = absolute_url(src_url), absolute_url(dst_url)
    layout = options.layout
    require_whole_multiple(VOLUME_AXES, options.chunk, options.shard)
    file = open_source(src_url, truncated=options.truncated, lengths=options.lengths)
    passes = _Passes(run.on_progress, file.trace_count)
    sources = [(part.url, part.version) for part in file.parts or (file,)]
    decisive = {
        "format": "segy",
        "numerical_version": NUMERICAL_VERSION,
        "source": [src_url, file.version, file.size_bytes],
        "options": options.decisive(),
    }
    with (
        ingesting(dst_url, decisive, overwrite=run.overwrite, sources=sources) as work,
        open_fanout(small=file.size_bytes <= SMALL_FILE_BYTES, num_cpus=run.num_cpus) as fanout,
    ):
        if work.done is not None:
            run.on_progress(file.trace_count, file.trace_count)
            return {"url": dst_url, **work.done}
        table = scan(file, layout, fanout, passes.add, work)
        meaning = judge(file, table, **options.meaning)
        samples = sample_axis(file, table, meaning, options.sample_start)
        placement = arrange(table, layout, src_url, options.arrangement)
        work.report(faults(file, placement))
        target = Target(dst_url, *volume_specs(file, placement, meaning, options.chunk, options.shard))
        small, values = small_arrays(file, placement, meaning, samples, options.crs)
        specs = [target.volume, target.headers, *small]
        work.create(specs, values)
        digests = _write_columns(file, target, values["trace_index"], work, fanout, passes.add)
        identity = identity_of(placement.kind, digests, values)
        info = describe(file, placement, meaning, options.crs, identity, NUMERICAL_VERSION)
        if options.attribution:
            info["attribution"] = options.attribution
        info = work.finish(specs, info)
    return {"url": dst_url, "shape": list(target.volume.shape), "shards": len(digests), **info}


def inspect_source(src_url: str, options: Options) -> Inspected:
    """What a file holds, from one pass over it; see `geobatch.inspect`."""
    from geobatch.formats.segy_inspect import inspect_file

    return inspect_file(src_url, options)


def scan(
    file: SegyFile,
    layout: SegyLayout,
    fanout: FanOut,
    on_traces: Callable[[int], None] = lambda count: None,
    work: Ingestion | None = None,
) -> TraceTable:
    """The trace table of the whole file, from one task per slab; `on_traces` hears how many traces each had.

    With `work`, slabs that an earlier run has scanned are not read again.
    """
    function = functools.partial(scan_slab, file=file, layout=layout)
    parts = slabs(file, SLAB_BYTES)
    how: Any = {"fanout": fanout, "task_bytes": 3 * SLAB_BYTES, "on_result": lambda slab: on_traces(slab[1])}
    if work is None:
        return merge_tables(in_order(how.pop("fanout"), function, parts, **how))
    return merge_tables(work.remembered("scan", function, parts, dump=dump_table, load=load_table, **how))


def write_column(column: Column, file: SegyFile, target: Target) -> Written:
    """Store one column: its headers and its shards, top to bottom."""
    samples, headers = read_column(column, file)
    objects = [store_shard(target.url, target.headers, (*column.index, 0), headers)]
    for k in range(shard_grid(target.volume)[-1]):
        index = (*column.index, k)
        objects.append(
            store_shard(target.url, target.volume, index, samples[..., shard_region(target.volume, index)[-1]])
        )
    return Written(tuple(objects))


def read_column(column: Column, file: SegyFile) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Samples `(…, sample)` float32, NaN where there is no trace, and raw trace headers, zero there.

    Each thread places what it has read at once, so that memory stays at the column and one run per thread.
    """
    samples = np.full((*column.traces.shape, file.sample_count), np.nan, np.float32)
    headers = np.zeros((*column.traces.shape, file.header_bytes), np.uint8)
    places = np.nonzero(column.traces >= 0)
    ordinals = column.traces[places]
    order = np.argsort(ordinals)
    places, ordinals = tuple(index[order] for index in places), ordinals[order]

    def place(run: slice) -> None:
        wanted = ordinals[run]
        raw = file.read_traces(int(wanted[0]), int(wanted[-1] - wanted[0]) + 1)
        raw = raw[wanted - wanted[0]]
        here = tuple(index[run] for index in places)
        samples[here] = file.decode(raw)
        headers[here] = raw[:, : file.header_bytes]

    with ThreadPoolExecutor(READERS) as readers:
        for _ in readers.map(place, runs(ordinals, file.trace_bytes)):
            pass
    return samples, headers


def runs(ordinals: npt.NDArray[np.int32], trace_bytes: int) -> list[slice]:
    """Parts of ascending trace ordinals to be read by one request each: small gaps bridged, size bounded."""
    wide = np.diff(ordinals) - 1 > GAP_BYTES // trace_bytes
    ends = [*(np.flatnonzero(wide) + 1).tolist(), len(ordinals)]
    reach = max(1, RUN_BYTES // trace_bytes)
    found: list[slice] = []
    start = 0
    for end in ends:
        while start < end:
            stop = min(end, int(np.searchsorted(ordinals, ordinals[start] + reach)))
            found.append(slice(start, stop))
            start = stop
    return found


def _write_columns(
    file: SegyFile,
    target: Target,
    trace_index: npt.NDArray[np.int32],
    work: Ingestion,
    fanout: FanOut,
    on_traces: Callable[[int], None],
) -> list[str]:
    """The SHA-256 of every shard of the volume, in the order of the shard grid."""
    columns = [
        Column(index[:-1], trace_index[shard_region(target.headers, index)[:-1]])
        for index in shard_indices(target.headers)
    ]
    written = work.write(
        functools.partial(write_column, file=file, target=target),
        columns,
        fanout=fanout,
        task_bytes=_column_bytes(file, target),
        on_piece=lambda column: on_traces(int((column.traces >= 0).sum())),
    )
    # The first object of a column is its headers.
    return [stored.sha256.hex() for column in written for stored in column.objects[1:]]


def _column_bytes(file: SegyFile, target: Target) -> int:
    """Peak memory of one write task: the column, the runs being read, one shard while it is encoded."""
    *places, samples = target.volume.shards
    traces = math.prod(places)
    column = traces * (file.sample_count * 4 + file.header_bytes)
    return column + 3 * READERS * (RUN_BYTES + file.trace_bytes) + 4 * 4 * traces * samples


def _options(given: dict[str, Any]) -> Options:
    from geobatch.formats import parse_options

    options = parse_options("segy", given)
    assert isinstance(options, Options)
    return options
