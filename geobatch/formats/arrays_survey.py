"""What an array becomes: axes with coordinates and units, the main variable, and the description of the survey."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from geobatch.errors import GeometryError, UsageError
from geobatch.formats.segy_survey import LONG_NAMES, MAP_CHUNK
from geobatch.moments import PartialMoments, figures
from geobatch.shards import ArraySpec, clip_grid, require_whole_multiple
from geobatch.survey import COMPLETE, INVALID_CLASS, SCHEMA, VOLUME_AXES, class_attributes

if TYPE_CHECKING:
    from geobatch.formats.arrays import Options, Source

# Version of everything in the reader of arrays that decides a value: order of axes, validity, classes.
NUMERICAL_VERSION = 1
RASTER_AXES = ("band", "y", "x")
SAMPLE_UNITS = {
    "ms": ("ms", 1.0),
    "s": ("ms", 1e3),
    "us": ("ms", 1e-3),
    "m": ("m", 1.0),
    "km": ("m", 1e3),
    "ft": ("m", 0.3048),
}
UNITS = {"velocity": "m/s", "elevation": "m"}
SIZES = {"volume": (64, 128), "labels": (64, 128), "raster": (512, 2048)}
REGULAR = 1e-4


@dataclass(frozen=True)
class Target:
    """The survey before it is written.

    Attributes:
        main: The main array.
        small: Its coordinates.
        values: Their values.
        order: Axis of the source per axis of the survey, -1 for one that the source has not.
        nodata: Values that mean none.
        scale: Factor and offset of packed values.
        codes: Source value of each class of a class map.
        sample_interval: Step of the sample axis.
        sample_unit: ms or m.
        live: Traces with a value, after they were written.
        zero: Live traces that are zero throughout.
    """

    main: ArraySpec
    small: tuple[ArraySpec, ...]
    values: dict[str, npt.NDArray[Any]]
    order: tuple[int, int, int]
    nodata: tuple[float, ...]
    scale: tuple[float, float]
    codes: tuple[float, ...] | None
    sample_interval: float | None = None
    sample_unit: str | None = None
    live: int = 0
    zero: int = 0


def make_target(source: Source, options: Options, coordinate: Callable[[str], npt.NDArray[np.float64]]) -> Target:
    """What the array becomes under these options.

    Raises:
        UsageError: the mapping does not fit the array.
        GeometryError: coordinates make no axis.
    """
    axes = RASTER_AXES if options.kind == "raster" else VOLUME_AXES
    order = axis_order(source, options, axes)
    shape = tuple(source.shape[axis] if axis >= 0 else 1 for axis in order)
    values, named = {}, {}
    for axis, length in zip(axes, shape, strict=True):
        values[axis], named[axis] = _axis(axis, length, options, coordinate)
    interval, unit = None, None
    if options.kind != "raster":
        unit = named["sample"]["units"]
        interval = _interval(values["sample"], source.url)
    packed = [float(source.attributes.get(key, default)) for key, default in (("scale_factor", 1), ("add_offset", 0))]
    return Target(
        main=_main(options, axes, shape, named),
        small=tuple(ArraySpec.small(axis, (axis,), values[axis], **named[axis]) for axis in axes),
        values=values,
        order=order,
        nodata=_nodata(source, options),
        scale=(packed[0], packed[1]),
        codes=tuple(float(code) for code in options.classes) if options.kind == "labels" else None,
        sample_interval=interval,
        sample_unit=unit,
    )


def axis_order(source: Source, options: Options, axes: Sequence[str]) -> tuple[int, int, int]:
    """The source's axis for each of the survey's, -1 where it has none of length more than one.

    Raises:
        UsageError: names and axes do not match.
    """
    dims = options.dims
    if dims is None and source.dims and set(source.dims) <= set(axes):
        dims = source.dims
    if dims is None:
        dims = tuple(axes)[-len(source.shape) :] if options.kind == "raster" else tuple(axes)
    if len(dims) != len(source.shape) or len(set(dims)) != len(dims) or not set(dims) <= set(axes):
        raise UsageError(
            "dims do not name the axes of the array",
            where=source.url,
            measured=f"dims {', '.join(dims)} for shape {source.shape}",
            limit=f"one of {', '.join(axes)} for each axis",
            remedy="Give --set dims=[…] in the order of the array's own axes.",
        )
    found = [dims.index(axis) if axis in dims else -1 for axis in axes]
    return (found[0], found[1], found[2])


def live_mask(
    target: Target, parts: Sequence[tuple[tuple[slice, slice], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]]
) -> tuple[ArraySpec, npt.NDArray[np.bool_], int]:
    """The map of traces with a value `(inline, crossline)`, and how many of these are zero throughout."""
    shape = target.main.shape[:2]
    live, nonzero = np.zeros(shape, bool), np.zeros(shape, bool)
    for place, some, own in parts:
        live[place] |= some
        nonzero[place] |= own
    chunks = tuple(min(MAP_CHUNK, n) for n in shape)
    about = {"long_name": "trace holds a value"}
    spec = ArraySpec("live_mask", VOLUME_AXES[:2], tuple(shape), "bool", chunks, chunks, False, about)
    return spec, live, int((live & ~nonzero).sum())


def describe(
    target: Target,
    source: Source,
    options: Options,
    version: tuple[str, int],
    moments: PartialMoments,
    non_finite: int,
    digests: list[str],
    values: dict[str, npt.NDArray[Any]],
) -> dict[str, Any]:
    """The `geobatch` attribute of the survey."""
    whole = hashlib.sha256(f"geobatch arrays {NUMERICAL_VERSION}".encode())
    for digest in digests:
        whole.update(digest.encode())
    for name in sorted(values):
        whole.update(np.ascontiguousarray(values[name]).tobytes())
    statistics: dict[str, Any] = {**figures(moments), "non_finite": non_finite}
    warnings = [f"{non_finite} values are infinite: they are kept as missing"] if non_finite else []
    info: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": options.kind,
        "variable": target.main.name,
        "quantity": options.quantity or ("class" if options.kind == "labels" else target.main.name),
        "crs": options.crs,
        "source": {
            "url": source.url,
            "variable": options.variable,
            "version": version[0],
            "size_bytes": version[1],
            "dtype": source.dtype,
        },
        "numerical_version": NUMERICAL_VERSION,
        "identity": whole.hexdigest(),
        "state": COMPLETE,
    }
    if options.kind == "raster":
        info["transform"] = _transform(target.values["x"], target.values["y"])
    else:
        info["domain"] = "time" if target.sample_unit == "ms" else "depth"
        info |= {"sample_interval": target.sample_interval, "sample_unit": target.sample_unit, "bin_grid": None}
    if options.kind == "volume":
        traces = math.prod(target.main.shape[:2])
        statistics |= {"traces": traces, "dead_traces": traces - target.live, "missing_traces": 0}
        if not target.live:
            warnings.append("no trace holds a value")
        if target.zero:
            warnings.append(f"{target.zero} traces are zero throughout: give nodata if nothing was recorded there")
    if not moments.count:
        warnings.append("no cell holds a value")
    if options.attribution:
        info["attribution"] = options.attribution
    return {**info, "statistics": statistics, "warnings": warnings}


def _axis(
    axis: str, length: int, options: Options, coordinate: Callable[[str], npt.NDArray[np.float64]]
) -> tuple[npt.NDArray[Any], dict[str, Any]]:
    """Coordinates of one axis and their attributes.

    Raises:
        GeometryError: they are not as many as cells, not in order, or no whole numbers where lines are counted.
    """
    given = options.axes.get(axis)
    if axis == "sample" and (given is None or given.unit is None):
        raise UsageError(
            "unit of the sample axis is not stated",
            where="axes.sample.unit",
            limit=", ".join(SAMPLE_UNITS),
            remedy="Give --set axes.sample.unit=ms, with start and step.",
        )
    if given is not None and given.coordinate:
        values = coordinate(given.coordinate)
    else:
        start, step = (given.start, given.step) if given else (1.0 if axis == "band" else 0.0, 1.0)
        values = start + step * np.arange(length, dtype=np.float64)
    steps = np.diff(values)
    if values.size != length or not np.isfinite(values).all() or not ((steps > 0).all() or (steps < 0).all()):
        raise GeometryError(
            "coordinates make no axis",
            where=axis,
            measured=f"{values.size} values{', not in strict order' if values.size == length else ''}",
            limit=f"{length} values in strict order",
        )
    if axis in ("inline", "crossline", "band"):
        if (values != np.rint(values)).any() or np.abs(values).max() >= 2**31:
            raise GeometryError("numbers of lines are not whole", where=axis, measured=f"{values[0]:g}, {values[-1]:g}")
        return values.astype(np.int32), {"long_name": f"{axis} number"}
    if axis == "sample" and given is not None and given.unit:
        unit, scale = SAMPLE_UNITS[given.unit]
        about = "two-way time" if unit == "ms" else "depth"
        return values * scale, {"long_name": about, "units": unit}
    return values, {"long_name": f"{axis} of the cell's centre", "units": "" if options.crs is None else "crs units"}


def _interval(samples: npt.NDArray[np.float64], where: str) -> float:
    """The step of the sample axis.

    Raises:
        GeometryError: it is irregular or goes up.
    """
    if samples.size == 1:
        return 1.0
    step = float(samples[-1] - samples[0]) / (samples.size - 1)
    if step <= 0 or np.abs(np.diff(samples) - step).max() > REGULAR * step:
        raise GeometryError("sample axis is irregular or goes up", where=where, measured=f"mean step {step:g}")
    return float(f"{step:.10g}")


def _nodata(source: Source, options: Options) -> tuple[float, ...]:
    """Values that mean none: the user's, and those that the file itself names."""
    own = [source.attributes[key] for key in ("_FillValue", "missing_value") if key in source.attributes]
    found = [float(value) for value in own if isinstance(value, int | float)]
    if options.nodata is not None:
        found.append(options.nodata)
    # Numbers of the source's type: -999.25 in float32 is another number than in float64.
    dtype = np.dtype(source.dtype)
    kept = []
    for value in found:
        with np.errstate(over="ignore", invalid="ignore"):
            if math.isfinite(value) and (dtype.kind == "f" or _holds(dtype, value)):
                kept.append(float(dtype.type(value)))
    return tuple(dict.fromkeys(kept))


def _holds(dtype: np.dtype[Any], value: float) -> bool:
    """True when an integer type has the value: a negative nodata of unsigned numbers never occurs."""
    if dtype.kind == "b":
        return value in (0, 1)
    limits = np.iinfo(dtype)
    return value == int(value) and limits.min <= value <= limits.max


def _main(options: Options, axes: Sequence[str], shape: tuple[int, ...], named: dict[str, dict[str, Any]]) -> ArraySpec:
    """The spec of the main array.

    Raises:
        UsageError: chunk and shard do not fit, or labels have no classes.
    """
    side, whole = SIZES[options.kind]
    base = (1, side, side) if options.kind == "raster" else (side,) * 3
    wide = (1, whole, whole) if options.kind == "raster" else (whole,) * 3
    chunk, shard = options.chunk or base, options.shard or wide
    require_whole_multiple(axes, chunk, shard)
    chunks, shards = clip_grid(shape, chunk, shard)
    if options.kind == "labels":
        return _labels(options, axes, shape, chunks, shards)
    name = options.quantity or ("amplitude" if options.kind == "volume" else "elevation")
    if not name.isidentifier() or name in axes:
        raise UsageError("quantity is no name of a variable", measured=name, limit="letters, digits and underscores")
    if options.kind == "volume" and options.domain is not None:
        unit = {"time": "ms", "depth": "m"}[options.domain]
        if named["sample"]["units"] != unit:
            raise UsageError(
                "domain and unit contradict each other", measured=f"{options.domain}, {named['sample']['units']}"
            )
    attributes = {"long_name": LONG_NAMES.get(name, name), "units": options.units or UNITS.get(name, "1")}
    return ArraySpec(name, tuple(axes), shape, "float32", chunks, shards, math.nan, attributes)


def _labels(
    options: Options, axes: Sequence[str], shape: tuple[int, ...], chunks: tuple[int, ...], shards: tuple[int, ...]
) -> ArraySpec:
    if not 0 < len(options.classes) < INVALID_CLASS:
        raise UsageError(
            "labels need the names of their classes",
            where="classes",
            measured=len(options.classes),
            limit=f"1 to {INVALID_CLASS - 1}",
            remedy="Give classes: {0: name, 1: name, …} with the values of the array.",
        )
    names = list(options.classes.values())
    colors = [f"#{hashlib.sha256(name.encode()).hexdigest()[:6]}" for name in names]
    attributes = {key: value for key, value in class_attributes(names, colors).items() if key != "coordinates"}
    return ArraySpec("class_map", tuple(axes), shape, "uint8", chunks, shards, INVALID_CLASS, attributes)


def _transform(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> list[float]:
    """The affine transform from column and row to x and y of a cell's corner, in the order of GDAL's `Affine`."""
    dx = float(x[1] - x[0]) if x.size > 1 else 1.0
    dy = float(y[1] - y[0]) if y.size > 1 else -1.0
    return [dx, 0.0, float(x[0]) - dx / 2, 0.0, dy, float(y[0]) - dy / 2]
