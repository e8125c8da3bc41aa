"""Event windows to training sets `(window, component, sample)` with picks, magnitudes and locations on `window`.

scan (tasks over files) → axes → write_piece (tasks over shards of windows) → finish

A source is a folder, a prefix or a file: SeisBench's HDF5 with a CSV file beside it, or NPZ files of one window each.
Every window keeps its own length; what lies beyond it is NaN. Samples become float32, as networks read them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from pydantic import Field

from geobatch.errors import FormatError, NotFoundError
from geobatch.fanout import FanOut, in_order, open_fanout
from geobatch.formats.ingestion import Fault, Ingestion, Written, ingesting, store_shard
from geobatch.formats.lazy import Key, lazy_array, small_variables
from geobatch.formats.miniseed_layout import ALIASES, COMPONENTS
from geobatch.formats.miniseed_scan import list_source
from geobatch.formats.spec import IngestOptions, IngestRun, Inspected
from geobatch.formats.windows_npz import event_rows, read_npz, scan_npz
from geobatch.formats.windows_seisbench import HDF5_SUFFIXES, open_hdf5, read_rows, scan_seisbench, trace_axes
from geobatch.formats.windows_source import Source, Table, dump_table, join, load_table
from geobatch.formats.windows_survey import MOMENTS, NUMERICAL_VERSION, describe, identity_of, moments, small_arrays
from geobatch.shards import ArraySpec
from geobatch.storage import absolute_url, open_storage, split_url
from geobatch.survey import COMPLETE, SCHEMA

SMALL_BYTES = 256 * 2**20
CHUNK_BYTES = 2**20
SHARD_BYTES = 2**26
NPZ_PER_TASK = 256


class Options(IngestOptions):
    """Options of event windows.

    Attributes:
        zeros_missing: A component that is zero throughout, beside others that are not, is missing and becomes NaN.
        sampling_rate_hz: Of NPZ windows, which do not tell theirs; 100 as in PhaseNet's data set.
        chunk: Windows per chunk, the unit of reading; about a megabyte when not given.
        shard: Windows per shard, the unit of writing, a multiple of `chunk`; about 64 megabytes when not given.
    """

    zeros_missing: bool = True
    sampling_rate_hz: float = Field(default=100.0, gt=0)
    chunk: int | None = Field(default=None, ge=1)
    shard: int | None = Field(default=None, ge=1)


@dataclass(frozen=True)
class Target:
    """Where windows go: the survey, the array of samples, the component axis, and what zeros mean."""

    url: str
    waveform: ArraySpec
    components: tuple[str, ...]
    zeros_missing: bool


@dataclass(frozen=True)
class Piece:
    """One shard of windows: its number and the rows of the table that it holds."""

    number: int
    table: Table


def ingest_source(src_url: str, dst_url: str, options: Options, run: IngestRun) -> dict[str, Any]:
    """A summary of the training set written to `dst_url` from the windows at `src_url`.

    Raises:
        NotFoundError: no file is there, or an HDF5 file has no metadata.
        FormatError: no file holds a window; the metadata have no column trace_name; an HDF5 file does not open.
        DataError: a file changed while it was read.
        UsageError: another complete survey is there already, or h5py is not installed.
    """
    src_url, dst_url = absolute_url(src_url), absolute_url(dst_url)
    source, files = find_windows(src_url)
    version = hashlib.sha256(json.dumps([source.keys, source.sizes, source.versions]).encode()).hexdigest()
    decisive = {
        "format": "windows",
        "numerical_version": NUMERICAL_VERSION,
        "source": [src_url, files, version],
        "options": options.decisive(),
    }
    total = sum(source.sizes)
    with (
        ingesting(dst_url, decisive, overwrite=run.overwrite, sources=source.files) as work,
        open_fanout(small=total <= SMALL_BYTES, num_cpus=run.num_cpus) as fanout,
    ):
        if work.done is not None:
            run.on_progress(1, 1)
            return {"url": dst_url, **work.done}
        table = scan(source, files, options, fanout, work)
        target = lay_out(table, options, dst_url)
        small, values = small_arrays(table, target.components)
        work.report(table.faults)
        work.create([target.waveform, *small], values)
        parts = pieces(table, target)
        written = work.write(
            functools.partial(write_piece, source=source, target=target),
            parts,
            fanout=fanout,
            task_bytes=5 * math.prod(target.waveform.shards) * 4 + 2 * SHARD_BYTES,
            on_piece=_counter(run, [len(part.table) for part in parts]),
        )
        info = describe(table, target.components, [part.figures for part in written]) | {
            "schema": SCHEMA,
            "state": COMPLETE,
            "crs": options.crs or "EPSG:4326",
            "source": {"url": source.url, "files": len(source.keys), "size_bytes": total, "version": version},
            "numerical_version": NUMERICAL_VERSION,
            "identity": identity_of(work.digests(), values),
        }
        if options.attribution:
            info["attribution"] = options.attribution
        info = work.finish([target.waveform, *small], info)
    return {"url": dst_url, "shape": list(target.waveform.shape), **info}


def inspect_source(src_url: str, options: Options) -> Inspected:
    """What a folder of windows holds, from a pass over all of them without writing: suspicious things first.

    Returns:
        `suspicious`, `url`, `kind`, the axes, how many windows have picks and magnitudes, their ranges, `statistics`,
        and `faults`, their number and the first of them.
    """
    src_url = absolute_url(src_url)
    source, files = find_windows(src_url)
    with open_fanout(small=sum(source.sizes) <= SMALL_BYTES) as fanout:
        table = scan(source, files, options, fanout, None)
        target = lay_out(table, options, "")
        function = functools.partial(_measure, source=source, target=target)
        found = in_order(fanout, function, pieces(table, target), task_bytes=8 * SHARD_BYTES)
    faults = [*table.faults, *(fault for part in found for fault in part.faults)]
    info = describe(table, target.components, [part.figures for part in found])
    sentences = list(info["warnings"])
    if faults:
        sentences.append(f"{len(faults)} faults, such as {faults[0].where}: {faults[0].fault}")
    shape = dict(zip(target.waveform.dims, target.waveform.shape, strict=True))
    told = {
        "suspicious": sentences,
        "url": src_url,
        **info,
        "shape": shape,
        "faults": {"count": len(faults), "examples": [vars(fault) for fault in faults[:20]]},
    }
    return Inspected(told, _as_survey(source, table, target, info))


def _as_survey(source: Source, table: Table, target: Target, info: dict[str, Any]) -> xr.Dataset:
    """The data set that ingest would write, its windows read one by one."""
    spec = target.waveform

    def read(key: Key) -> npt.NDArray[np.float32]:
        rows = np.atleast_1d(np.arange(len(table))[key[0]])
        samples, _, _ = read_piece(Piece(0, replace(table.take(rows), faults=[])), source, target)
        return (samples if isinstance(key[0], slice) else samples[0])[(..., *key[1:])]

    cells = lazy_array(spec.dims, spec.shape, spec.dtype, read, chunks=(1, *spec.shape[1:]), **dict(spec.attributes))
    found = small_variables(*small_arrays(table, target.components))
    return xr.Dataset({**found, spec.name: cells}, attrs={"geobatch": info})


def find_windows(url: str) -> tuple[Source, list[int]]:
    """The source, and the numbers of its files that hold windows: HDF5, or else NPZ.

    Raises:
        FormatError: there are none.
    """
    source, picked = list_source(url), ""
    if len(source.keys) == 1 and source.keys[0].endswith(HDF5_SUFFIXES):
        # Metadata stand beside the one file that is named.
        root, name = split_url(url)
        if source.url == root:
            source, picked = list_source(root), name
    named = [number for number, key in enumerate(source.keys) if not picked or key == picked]
    hdf5 = [number for number in named if source.keys[number].lower().endswith(HDF5_SUFFIXES)]
    files = hdf5 or [number for number in named if source.keys[number].lower().endswith(".npz")]
    if not files:
        raise FormatError("no HDF5 or NPZ file there", where=url, measured=", ".join(source.keys[:5]))
    return source, files


def scan(source: Source, files: Sequence[int], options: Options, fanout: FanOut, work: Ingestion | None) -> Table:
    """What is known of every window.

    Raises:
        FormatError: no file holds a window.
    """
    npz = source.keys[files[0]].lower().endswith(".npz")
    size = NPZ_PER_TASK if npz else 1
    items = [tuple(files[start : start + size]) for start in range(0, len(files), size)]
    function = functools.partial(_scan_files, source=source, options=options)
    how: Any = {"fanout": fanout, "task_bytes": 8 * SHARD_BYTES}
    if work is None:
        tables = in_order(how.pop("fanout"), function, items, **how)
    else:
        tables = work.remembered("scan", function, items, dump=dump_table, load=load_table, **how)
    table = join(tables)
    if npz:
        table = _with_csv(table, source)
    if not len(table):
        fault = table.faults[0] if table.faults else None
        raise FormatError(
            "no window there", where=source.url, measured=f"{fault.where}: {fault.fault}" if fault else ""
        )
    return table


def lay_out(table: Table, options: Options, url: str) -> Target:
    """The array of samples and its axes."""
    used = {code for codes in set(table.columns["components"].tolist()) for code in _slots(codes)}
    usual = tuple(COMPONENTS) if used & set(COMPONENTS) else ()
    components = (*usual, *sorted(used - set(COMPONENTS)))
    shape = (len(table), len(components), int(table.columns["length"].max()))
    window_bytes = 4 * shape[1] * shape[2]
    chunk = options.chunk or max(1, CHUNK_BYTES // window_bytes)
    chunk = min(chunk, shape[0])
    shard = chunk * max(1, (options.shard or max(chunk, SHARD_BYTES // window_bytes)) // chunk)
    shard = min(shard, chunk * -(-shape[0] // chunk))
    attributes: dict[str, Any] = {"long_name": "ground motion", "units": table.told.get("unit", "counts")}
    rates = np.unique(table.columns["sampling_rate_hz"])
    if len(rates) == 1 and np.isfinite(rates[0]):
        attributes["sampling_rate_hz"] = float(rates[0])
    cells = (components, shape[2])
    spec = ArraySpec(
        "waveform",
        ("window", "component", "sample"),
        shape,
        "float32",
        (chunk, len(cells[0]), cells[1]),
        (shard, len(cells[0]), cells[1]),
        math.nan,
        attributes,
    )
    return Target(url, spec, components, options.zeros_missing)


def pieces(table: Table, target: Target) -> list[Piece]:
    """One per shard."""
    size = target.waveform.shards[0]
    return [
        Piece(number, replace(table.take(np.arange(start, min(start + size, len(table)))), faults=[]))
        for number, start in enumerate(range(0, len(table), size))
    ]


def write_piece(piece: Piece, source: Source, target: Target) -> Written:
    """Store one shard of windows."""
    samples, faults, counted = read_piece(piece, source, target)
    return Written((store_shard(target.url, target.waveform, (piece.number, 0, 0), samples),), tuple(faults), counted)


def read_piece(
    piece: Piece, source: Source, target: Target
) -> tuple[npt.NDArray[np.float32], list[Fault], dict[str, Any]]:
    """The samples of a shard's windows, what did not read, and figures."""
    columns = piece.table.columns
    samples = np.full((len(piece.table), *target.waveform.shape[1:]), np.nan, np.float32)
    faults: list[Fault] = []
    counted = {"not_finite": 0, "missing_components": 0, "dead": 0, "unread": 0}
    for file in np.unique(columns["file"]):
        rows = np.flatnonzero(columns["file"] == file)
        for number, window in _windows(source, int(file), columns["place"][rows].tolist()):
            row = int(rows[number])
            if isinstance(window, str):
                where = f"{source.keys[file]} {columns['place'][row]}"
                faults.append(Fault("window", where, window, "left as missing"))
                counted["unread"] += 1
                continue
            _place(samples[row], window, str(columns["components"][row]), target, counted)
    total = moments(samples)
    counted |= {name: getattr(total, name) for name in MOMENTS}
    return samples, faults, counted if total.count else {**counted, "minimum": None, "maximum": None}


def _scan_files(files: tuple[int, ...], source: Source, options: Options) -> Table:
    if source.keys[files[0]].lower().endswith(".npz"):
        return scan_npz(files, source, options.sampling_rate_hz)
    return scan_seisbench(files[0], source)


def _with_csv(table: Table, source: Source) -> Table:
    """The table, with a fault for each row of a CSV file beside NPZ files that names a file which is not there."""
    held = {PurePosixPath(key).name for key in source.keys}
    for key in source.keys:
        if key.lower().endswith(".csv"):
            missing = [name for name in event_rows(open_storage(source.url).get(key)) if name not in held]
            table.faults += [
                Fault("row", f"{key} {name}", "names a file that is not there", "left out") for name in missing
            ]
    return table


def _windows(source: Source, file: int, places: list[str]) -> Any:
    """Number and samples `(component, sample)` of each window of a file, or what is wrong with it."""
    key = source.keys[file]
    if key.lower().endswith(".npz"):
        try:
            yield 0, read_npz(open_storage(source.url).get(key))
        except (FormatError, NotFoundError) as error:
            yield 0, error.what
        return
    with open_hdf5(source, file) as hdf5:
        yield from read_rows(hdf5, places, trace_axes(hdf5))


def _place(
    row: npt.NDArray[np.float32], window: npt.NDArray[Any], codes: str, target: Target, counted: dict[str, int]
) -> None:
    """Put the components of a window where they belong."""
    live = np.asarray(window.any(axis=1))
    counted["dead"] += not live.any()
    with np.errstate(over="ignore"):
        single = window.astype(np.float32)
    counted["not_finite"] += int((~np.isfinite(single)).sum())
    single = np.where(np.isfinite(single), single, np.float32(np.nan))
    for number, code in enumerate(_slots(codes)[: window.shape[0]]):
        if target.zeros_missing and live.any() and not live[number]:
            counted["missing_components"] += 1
            continue
        row[target.components.index(code), : single.shape[1]] = single[number]


def _slots(codes: str) -> list[str]:
    """The component of each orientation code; 1, 2 and 3 take the places of N, E and Z where there are none."""
    return [ALIASES[code] if code in ALIASES and ALIASES[code] not in codes else code for code in codes]


def _measure(piece: Piece, source: Source, target: Target) -> Written:
    _, faults, counted = read_piece(piece, source, target)
    return Written((), tuple(faults), counted)


def _counter(run: IngestRun, sizes: Sequence[int]) -> Any:
    done = 0

    def add(piece: Piece) -> None:
        nonlocal done
        done += len(piece.table)
        run.on_progress(done, sum(sizes))

    return add
