"""SEG-Y to survey: scan the headers, make the grid, write every column of shards; the file itself is never copied.

open_segy → scan (tasks over slabs) → judge, make_grid → write_column (tasks over columns) → finish_group
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geobatch.errors import DataError, UsageError
from geobatch.fanout import FanOut, in_order, open_fanout
from geobatch.formats.ingestion import Ingestion, Written, ingesting, store_shard
from geobatch.formats.segy import TRACE_HEADER_BYTES, SegyFile, SegyLayout, open_segy
from geobatch.formats.segy_geometry import make_grid
from geobatch.formats.segy_meaning import Domain, Quantity, SampleUnit, judge
from geobatch.formats.segy_scan import TraceTable, dump_table, load_table, merge_tables, scan_slab, slabs
from geobatch.formats.segy_survey import (
    NUMERICAL_VERSION,
    Size3,
    describe,
    identity_of,
    sample_axis,
    small_arrays,
    volume_specs,
)
from geobatch.formats.spec import IngestOptions, IngestRun
from geobatch.shards import ArraySpec, shard_grid, shard_indices, shard_region
from geobatch.storage import absolute_url, open_storage, split_url
from geobatch.survey import VOLUME_AXES

SMALL_FILE_BYTES = 64 * 2**20
SLAB_BYTES = 32 * 2**20
READERS = 4
RUN_BYTES = 8 * 2**20
# A gap this small between wanted traces costs less to read than another request.
GAP_BYTES = 128 * 2**10


@dataclass(frozen=True)
class Column:
    """One column of shards: all samples of a range of inlines and crosslines.

    Attributes:
        index: Position in the shard grid, inline and crossline.
        traces: Ordinal of each trace in the file, `(inline, crossline)` int32, -1 where there is none.
    """

    index: tuple[int, int]
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
    """Options of SEG-Y; `geobatch.formats.segy_ingest.ingest` says what each is.

    Attributes:
        inline_byte: First trace header byte of the inline number.
        crossline_byte: First trace header byte of the crossline number.
        x_byte: First trace header byte of cdp_x.
        y_byte: First trace header byte of cdp_y.
        quantity: `amplitude` or `velocity`.
        domain: `time` or `depth`.
        sample_interval: Step of the vertical axis in `sample_unit`.
        sample_unit: `ms`, `m` or `ft`.
        sample_start: First value of the vertical axis.
        chunk: Unit of reading `(inline, crossline, sample)`.
        shard: Unit of writing, a multiple of `chunk`.
    """

    inline_byte: int = SegyLayout.inline
    crossline_byte: int = SegyLayout.crossline
    x_byte: int = SegyLayout.cdp_x
    y_byte: int = SegyLayout.cdp_y
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
        return SegyLayout(self.inline_byte, self.crossline_byte, self.x_byte, self.y_byte)


def ingest_source(src_url: str, dst_url: str, options: Options, run: IngestRun) -> dict[str, Any]:
    """As `ingest`, told as every format is."""
    bytes_of_layout = {"inline_byte", "crossline_byte", "x_byte", "y_byte"}
    given = {name: getattr(options, name) for name in Options.model_fields if name not in bytes_of_layout}
    return ingest(
        src_url,
        dst_url,
        layout=options.layout,
        overwrite=run.overwrite,
        num_cpus=run.num_cpus,
        on_progress=run.on_progress,
        **given,
    )


def ingest(
    src_url: str,
    dst_url: str,
    *,
    layout: SegyLayout | None = None,
    crs: str | None = None,
    attribution: str | None = None,
    quantity: str | None = None,
    domain: str | None = None,
    sample_interval: float | None = None,
    sample_unit: str | None = None,
    sample_start: float | None = None,
    chunk: Size3 = (64, 64, 64),
    shard: Size3 = (128, 128, 128),
    overwrite: bool = False,
    num_cpus: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """A summary of the survey written to `dst_url` from the 3-D post-stack SEG-Y file at `src_url`.

    Args:
        src_url: SEG-Y file on S3 or a file system; sample formats 1, 2, 3, 5 and 8, either byte order, any trace order.
        dst_url: Where the survey goes; it opens only after the last write.
        layout: Trace header positions, SEG-Y rev 1 by default.
        crs: Coordinate reference system of cdp_x and cdp_y, such as `EPSG:23031`.
        attribution: Whom to name, and under which licence, wherever the data are shown.
        quantity: `amplitude` or `velocity`; judged from the file when not given.
        domain: `time` or `depth`; judged from the file when not given.
        sample_interval: Step of the vertical axis in `sample_unit`; from the file when not given.
        sample_unit: `ms`, `m` or `ft`; feet are converted to metres.
        sample_start: First value of the vertical axis; the delay of the traces when not given.
        chunk: Unit of reading `(inline, crossline, sample)`, clipped to the survey.
        shard: Unit of writing, a multiple of `chunk`, clipped to the survey.
        overwrite: Replace a complete survey.
        num_cpus: CPUs of the local Ray cluster when this process is connected to none.
        on_progress: Called with traces done and traces in all; a trace is read twice and done after the second time.

    Raises:
        NotFoundError: no such file.
        FormatError: the file is damaged or of an unsupported format.
        GeometryError: its traces make no regular grid.
        UsageError: a complete survey is there already, or options contradict each other.
    """
    src_url, dst_url = absolute_url(src_url), absolute_url(dst_url)
    layout = layout or SegyLayout()
    _check_multiple(chunk, shard)
    file = open_segy(src_url)
    passes = _Passes(on_progress, file.trace_count)
    decisive = {
        "format": "segy",
        "numerical_version": NUMERICAL_VERSION,
        "source": [src_url, file.version, file.size_bytes],
        "layout": dataclasses.asdict(layout),
        "meaning": [quantity, domain, sample_interval, sample_unit, sample_start],
        "described": [crs, attribution],
        "cut": [chunk, shard],
    }
    with (
        ingesting(dst_url, decisive, overwrite=overwrite) as work,
        open_fanout(small=file.size_bytes <= SMALL_FILE_BYTES, num_cpus=num_cpus) as fanout,
    ):
        if work.done is not None:
            on_progress(file.trace_count, file.trace_count)
            return {"url": dst_url, **work.done}
        table = scan(file, layout, fanout, passes.add, work)
        meaning = judge(
            file,
            table,
            quantity=quantity,
            domain=domain,
            sample_interval=sample_interval,
            sample_unit=sample_unit,
        )
        grid = make_grid(table, layout, src_url)
        samples = sample_axis(file, table, meaning, sample_start)
        target = Target(dst_url, *volume_specs(file, grid, meaning, chunk, shard))
        small, values = small_arrays(file, table, grid, meaning, samples, crs)
        specs = [target.volume, target.headers, *small]
        work.create(specs, values)
        digests = _write_columns(file, target, values["trace_index"], work, fanout, passes.add)
        _refuse_changed(file)
        info = describe(file, table, grid, meaning, layout, crs, identity_of(digests, values))
        if attribution:
            info["attribution"] = attribution
        info = work.finish(specs, info)
    return {"url": dst_url, "shape": list(target.volume.shape), "shards": len(digests), **info}


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
    for k in range(shard_grid(target.volume)[2]):
        index = (*column.index, k)
        objects.append(
            store_shard(target.url, target.volume, index, samples[:, :, shard_region(target.volume, index)[2]])
        )
    return Written(tuple(objects))


def read_column(column: Column, file: SegyFile) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Samples `(inline, crossline, sample)` float32, NaN where there is no trace, and raw trace headers, zero there.

    Each thread places what it has read at once, so that memory stays at the column and one run per thread.
    """
    samples = np.full((*column.traces.shape, file.sample_count), np.nan, np.float32)
    headers = np.zeros((*column.traces.shape, TRACE_HEADER_BYTES), np.uint8)
    inline_index, crossline_index = np.nonzero(column.traces >= 0)
    ordinals = column.traces[inline_index, crossline_index]
    order = np.argsort(ordinals)
    inline_index, crossline_index, ordinals = inline_index[order], crossline_index[order], ordinals[order]

    def place(run: slice) -> None:
        wanted = ordinals[run]
        raw = file.read_traces(int(wanted[0]), int(wanted[-1] - wanted[0]) + 1)
        raw = raw[wanted - wanted[0]]
        samples[inline_index[run], crossline_index[run]] = file.decode(raw)
        headers[inline_index[run], crossline_index[run]] = raw[:, :TRACE_HEADER_BYTES]

    with ThreadPoolExecutor(READERS) as readers:
        for _ in readers.map(place, runs(ordinals, file.trace_bytes)):
            pass
    return samples, headers


def runs(ordinals: npt.NDArray[np.int32], trace_bytes: int) -> list[slice]:
    """Parts of ascending trace ordinals to be read by one request each: small gaps bridged, size bounded."""
    found: list[slice] = []
    start = 0
    for i in range(1, len(ordinals) + 1):
        if i < len(ordinals):
            gap = (int(ordinals[i] - ordinals[i - 1]) - 1) * trace_bytes
            size = (int(ordinals[i] - ordinals[start]) + 1) * trace_bytes
            if gap <= GAP_BYTES and size <= RUN_BYTES:
                continue
        found.append(slice(start, i))
        start = i
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
        Column((i, j), trace_index[shard_region(target.headers, (i, j, 0))[:2]])
        for i, j, _ in shard_indices(target.headers)
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
    inlines, crosslines, samples = target.volume.shards
    column = inlines * crosslines * (file.sample_count * 4 + TRACE_HEADER_BYTES)
    return column + 3 * READERS * (RUN_BYTES + file.trace_bytes) + 4 * 4 * inlines * crosslines * samples


def _check_multiple(chunk: Size3, shard: Size3) -> None:
    for axis, c, s in zip(VOLUME_AXES, chunk, shard, strict=True):
        if c < 1 or s < c or s % c:
            raise UsageError(
                "shard is no whole multiple of the chunk", where=axis, measured=f"shard {s}, chunk {c}", limit="s = k c"
            )


def _refuse_changed(file: SegyFile) -> None:
    """The scan and the columns read the file at different times: it must have been the same one."""
    root, name = split_url(file.url)
    version = open_storage(root).version(name)
    if version != file.version:
        raise DataError(
            "file changed while it was being read",
            where=file.url,
            measured=f"version {version}",
            limit=f"version {file.version}",
            remedy="Run ingest again when nothing writes the file.",
        )
