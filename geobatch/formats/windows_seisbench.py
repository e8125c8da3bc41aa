"""SeisBench data sets: waveforms in HDF5, one row per trace in a CSV file beside it.

The format is SeisBench's own documentation, "data format": `data/<name>` with traces or blocks of traces,
`trace_name` such as `bucket0$12,:3,:1200`, and the group `data_format` with component and dimension order.
"""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv

from geobatch.errors import FormatError, NotFoundError
from geobatch.formats.ingestion import Fault
from geobatch.formats.libraries import need
from geobatch.formats.windows_source import Source, Table, times_ns
from geobatch.storage import open_storage
from geobatch.storage.ranged import RangedFile

HDF5_SUFFIXES = (".hdf5", ".h5")
PLACE = re.compile(r"(?P<name>[^$]+)(?:\$(?P<row>\d+)(?P<slices>(?:,\d*:\d+)*))?")
ARRIVAL = re.compile(r"trace_(?P<phase>[PSps][a-zA-Z0-9]*)_arrival_sample")
NUMBERS = {
    "magnitude": ("source_magnitude",),
    "source_latitude": ("source_latitude_deg",),
    "source_longitude": ("source_longitude_deg",),
    "source_depth_km": ("source_depth_km",),
    "sampling_rate_hz": ("trace_sampling_rate_hz", "trace_dt_s"),
}
# zlib packs at most about a thousand to one.
LARGEST_RATIO = 1100
RUN_ROWS = 64
CODES = ("station_network_code", "station_code", "station_location_code", "trace_channel")
TEXTS = ("trace_name", "trace_start_time", "trace_component_order", "split", *CODES)


def metadata_key(source: Source, key: str) -> str:
    """The metadata file that belongs to a waveform file: `waveforms_2015.hdf5` has `metadata_2015.csv`.

    Raises:
        NotFoundError: there is none.
    """
    path = PurePosixPath(key)
    near = [other for other in source.keys if other.endswith(".csv") and PurePosixPath(other).parent == path.parent]
    named = str(path.with_name(path.stem.replace("waveforms", "metadata", 1) + ".csv"))
    if named in near:
        return named
    if len(near) == 1:
        return near[0]
    raise NotFoundError(
        "no metadata file for the waveforms", where=key, limit=named, remedy="Put the CSV file beside the HDF5 file."
    )


def scan_seisbench(file: int, source: Source) -> Table:
    """One row per trace that the metadata name and the waveforms hold.

    Raises:
        FormatError: the metadata have no column trace_name, or the HDF5 file does not open.
    """
    key = source.keys[file]
    meta_key = metadata_key(source, key)
    rows = read_metadata(open_storage(source.url).get(meta_key), meta_key)
    with open_hdf5(source, file) as hdf5:
        told = _data_format(hdf5)
        shapes = {str(name): _shape(hdf5, str(name)) for name in _names(hdf5)}
    names = rows["trace_name"]
    lengths = np.zeros(len(names), np.int64)
    faults = []
    for number, name in enumerate(names):
        try:
            lengths[number] = _extent(name, shapes, told["dimension_order"])[1]
        except FormatError as error:
            where = f"{meta_key} row {number + 2} ({name})"
            faults.append(Fault("row", where, f"{error.what}; {error.measured}".removesuffix("; "), "left out"))
    order = [row or told["component_order"] for row in rows["trace_component_order"]]
    rates = rows["sampling_rate_hz"]
    rate = _float(told.get("sampling_rate", ""))
    table = Table.of(
        len(names),
        faults,
        {name: told[name] for name in ("unit", "measurement", "instrument_response") if name in told},
        file=np.full(len(names), file),
        place=names,
        length=lengths,
        components=order,
        start=times_ns(rows["trace_start_time"]),
        station=[".".join(filter(None, parts)) for parts in zip(*(rows[code] for code in CODES[:3]), strict=True)],
        split=rows["split"],
        **{name: rows[name] for name in ("magnitude", "source_latitude", "source_longitude", "source_depth_km")},
        sampling_rate_hz=np.where(np.isnan(rates), rate, rates),
        p_sample=_inside(rows["P"], lengths),
        s_sample=_inside(rows["S"], lengths),
    )
    return table.take(np.flatnonzero(lengths > 0))


def read_metadata(body: bytes, where: str) -> dict[str, Any]:
    """The columns that matter: texts as lists, numbers as float64 with NaN, `P` and `S` the earliest arrival of each.

    Raises:
        FormatError: there is no column trace_name, or it is no CSV file.
    """
    first = body[: 2**20].partition(b"\n")[0].decode("utf-8", "replace").strip("\r\ufeff")
    try:
        header = next(csv.reader([first]), [])
    except csv.Error as error:
        raise FormatError("metadata do not read as CSV", where=where, measured=str(error)) from error
    if "trace_name" not in header:
        raise FormatError("metadata have no column trace_name", where=where, measured=", ".join(header)[:200])
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise FormatError("metadata name a column twice", where=where, measured=", ".join(twice)[:200])
    arrivals = {name: kind["phase"][0].upper() for name in header if (kind := ARRIVAL.fullmatch(name))}
    wanted = [name for name in header if name in TEXTS or name in arrivals or name in _NUMBER_NAMES]
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(body),
            parse_options=pa.csv.ParseOptions(newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(
                include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string()), strings_can_be_null=False
            ),
        )
    except (pa.ArrowException, ValueError) as error:
        raise FormatError("metadata do not read as CSV", where=where, measured=str(error)[:200]) from error
    found: dict[str, Any] = {name: table[name].to_pylist() if name in wanted else [""] * len(table) for name in TEXTS}
    for name, sources in NUMBERS.items():
        found[name] = _numbers(table, [source for source in sources if source in wanted])
    for phase in "PS":
        columns = [_numbers(table, [name]) for name, letter in arrivals.items() if letter == phase]
        found[phase] = np.fmin.reduce(columns) if columns else np.full(len(table), np.nan)
    return found


@contextlib.contextmanager
def open_hdf5(source: Source, file: int) -> Iterator[Any]:
    """The waveform file, read by ranges.

    Raises:
        FormatError: it is no HDF5 file or is truncated.
    """
    h5py = need("h5py", "earthquake")
    key = source.keys[file]
    raw = RangedFile(open_storage(source.url), key, source.sizes[file])
    try:
        hdf5 = h5py.File(raw, "r")
    except (OSError, RuntimeError, ValueError) as error:
        raise FormatError("no HDF5 file, or a truncated one", where=key, measured=str(error)[:200]) from error
    with hdf5:
        yield hdf5


def read_rows(hdf5: Any, places: Sequence[str], order: str) -> Iterator[tuple[int, npt.NDArray[Any] | str]]:
    """The samples `(component, sample)` of each place, or what is wrong with it; neighbours in a block by one read."""
    parsed = [_parse(place) for place in places]
    numbers = sorted(range(len(places)), key=lambda number: parsed[number][:2])
    start = 0
    for end in range(1, len(numbers) + 1):
        if end < len(numbers) and _follows(parsed[numbers[end - 1]], parsed[numbers[end]], end - start):
            continue
        yield from _read_run(hdf5, numbers[start:end], parsed, order)
        start = end


def trace_axes(hdf5: Any) -> str:
    """The axes of one trace, `CW` or `WC`."""
    return _data_format(hdf5)["dimension_order"]


_NUMBER_NAMES = {name for names in NUMBERS.values() for name in names}
_Place = tuple[str, int, tuple[tuple[int, int | None], ...]]


def _read_run(
    hdf5: Any, run: list[int], parsed: Sequence[_Place], order: str
) -> Iterator[tuple[int, npt.NDArray[Any] | str]]:
    name, first, _ = parsed[run[0]]
    try:
        dataset = hdf5["data"][name]
        block = dataset[()][None] if first < 0 else dataset[first : parsed[run[-1]][1] + 1]
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        if len(run) == 1:
            yield run[0], f"does not read: {error}"[:300]
        else:
            for number in run:
                yield from _read_run(hdf5, [number], parsed, order)
        return
    for number in run:
        window = block[parsed[number][1] - first if first >= 0 else 0]
        window = window[tuple(slice(*bounds) for bounds in parsed[number][2])]
        yield number, window if order == "CW" else window.T


def _follows(before: _Place, after: _Place, length: int) -> bool:
    return after[:2] in ((before[0], before[1] + 1), before[:2]) and before[1] >= 0 and length < RUN_ROWS


def _parse(place: str) -> _Place:
    """Name, row in the block (-1: the whole data set is one trace) and bounds of each axis of a `trace_name`.

    Raises:
        FormatError: it is none.
    """
    found = PLACE.fullmatch(place)
    if not found:
        raise FormatError("trace_name is malformed", measured=place[:80])
    bounds = []
    for part in (found["slices"] or "").split(",")[1:]:
        low, _, high = part.partition(":")
        bounds.append((int(low or 0), int(high)))
    return found["name"], -1 if found["row"] is None else int(found["row"]), tuple(bounds)


def _extent(place: str, shapes: dict[str, tuple[int, ...]], order: str) -> tuple[int, int]:
    """Components and samples of a trace.

    Raises:
        FormatError: the waveforms do not hold it.
    """
    name, row, bounds = _parse(place)
    if name not in shapes:
        raise FormatError("names a trace that the waveforms do not hold", measured=name)
    shape = shapes[name]
    if row >= 0:
        if row >= shape[0]:
            raise FormatError("names a row beyond its block", measured=f"{row} of {shape[0]}")
        shape = shape[1:]
    if len(shape) != 2 or len(bounds) > 2:
        raise FormatError("is no trace of two axes", measured=shapes[name])
    limits = [*bounds, *[(0, None)] * (2 - len(bounds))]
    extent = [max(min(n if high is None else high, n) - low, 0) for n, (low, high) in zip(shape, limits, strict=True)]
    components, samples = extent if order == "CW" else extent[::-1]
    if not components or not samples:
        raise FormatError("holds no samples", measured=shape)
    return components, samples


def _names(hdf5: Any) -> list[str]:
    if "data" not in hdf5 or not hasattr(hdf5["data"], "keys"):
        raise FormatError("HDF5 file has no group data", where=str(hdf5.filename))
    return list(hdf5["data"])


def _shape(hdf5: Any, name: str) -> tuple[int, ...]:
    """The shape of a data set that holds its own samples; for anything else no axes, so that its rows are faults.

    Links to other files are not followed, and what claims samples that are not stored is not read.
    """
    h5py = need("h5py", "earthquake")
    group = hdf5["data"]
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        return ()
    try:
        dataset = group[name]
        if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
            return ()
        stored = dataset.id.get_storage_size()
    except (OSError, RuntimeError, KeyError, ValueError):
        return ()
    claimed = int(np.prod(dataset.shape, dtype=object)) * dataset.dtype.itemsize
    plausible = dataset.dtype.kind in "fiu" and claimed <= LARGEST_RATIO * stored
    return tuple(dataset.shape) if plausible else ()


def _data_format(hdf5: Any) -> dict[str, str]:
    """What the group `data_format` says, with SeisBench's defaults."""
    told = {"component_order": "ZNE", "dimension_order": "CW"}
    try:
        for name in hdf5.get("data_format", {}):
            value = hdf5["data_format"][name][()]
            told[str(name)] = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    except (OSError, RuntimeError, KeyError, ValueError, AttributeError) as error:
        raise FormatError("data_format does not read", where=str(hdf5.filename), measured=str(error)[:200]) from error
    told["dimension_order"] = told["dimension_order"].replace("N", "")
    if told["dimension_order"] not in ("CW", "WC"):
        raise FormatError("unknown order of dimensions", measured=told["dimension_order"], limit="CW or WC")
    return told


def _numbers(table: pa.Table, names: Sequence[str]) -> npt.NDArray[np.float64]:
    """The first of these columns as numbers, a step in seconds as a rate; NaN where there is none."""
    found = np.full(len(table), np.nan)
    for name in names[:1]:
        found = np.array([_float(text) for text in table[name].to_pylist()])
        if name == "trace_dt_s":
            with np.errstate(divide="ignore"):
                found = 1 / found
    return found


def _float(text: str) -> float:
    """A finite number, NaN for any other text."""
    try:
        value = float(text)
    except ValueError:
        return np.nan
    return value if np.isfinite(value) else np.nan


def _inside(samples: npt.NDArray[np.float64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The picks that lie in their windows."""
    with np.errstate(invalid="ignore"):
        return np.where((samples >= 0) & (samples < lengths), samples, np.nan)
