"""Layers of labels: each says which class, if any, the cells of a block have."""

from __future__ import annotations

import codecs
import io
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from geobatch.errors import DataError, FormatError, UsageError
from geobatch.formats.libraries import need
from geobatch.formats.raster_labels import Grid, label_reader
from geobatch.formats.tables import refuse_long_lines
from geobatch.labels import spec
from geobatch.labels.grid import Floats, LabelGrid
from geobatch.labels.surfaces import Depths, fault_cells
from geobatch.storage import open_storage, split_url
from geobatch.survey import INVALID_CLASS

Region = tuple[slice, ...]
Classes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]


SIGNATURE_BYTES = 64
# Left to itself GDAL finds the driver, and some of its drivers (VRT, streamed algorithms) read whatever file they name.
SHAPES = {b"SQLite format 3": "GPKG:", b"{": "GeoJSON:", b"fgb\x03": "", b"\0\0\x27\x0a": ""}


class Painter(Protocol):
    """A layer that is ready to paint."""

    def paint(self, region: Region, class_map: Classes) -> None:
        """Write its classes into the class map of a block that covers `region`."""
        ...


def make_painter(layer: spec.Layer, grid: LabelGrid, numbers: dict[str, int]) -> Painter:
    """The painter of a layer.

    Args:
        layer: What the job says.
        grid: The survey's.
        numbers: The number of each class.

    Raises:
        UsageError: the layer does not fit the survey.
        DataError: its file is bad, or lies off the survey.
    """
    make: Callable[[Any, LabelGrid, dict[str, int]], Painter] = _PAINTERS[type(layer)]
    return make(layer, grid, numbers)


class _Everywhere:
    def __init__(self, layer: spec.Everywhere, grid: LabelGrid, numbers: dict[str, int]) -> None:
        self._number = numbers[layer.label]

    def paint(self, region: Region, class_map: Classes) -> None:
        class_map[...] = self._number


class _Band:
    """Samples from one surface to another; in a raster there is nothing between."""

    def __init__(self, grid: LabelGrid, top: spec.Surface | None, base: spec.Surface | None) -> None:
        self._samples = grid.samples
        if self._samples is None and (top is not None or base is not None):
            raise UsageError("a raster has no vertical axis", where="top or base of a layer")
        self._top = None if top is None else Depths(top, grid)
        self._base = None if base is None else Depths(base, grid)

    def cells(self, region: Region) -> Bools:
        """Cells of the band, in a shape that broadcasts to the region's."""
        if self._samples is None:
            return np.ones((1, 1), bool)
        z = self._samples[region[2]]
        inside = np.ones((1, 1, z.size), bool)
        if self._top is not None:
            inside = inside & (z >= self._top.values(*region[:2])[:, :, None])
        if self._base is not None:
            inside = inside & (z < self._base.values(*region[:2])[:, :, None])
        return inside


class _Zone:
    def __init__(self, layer: spec.Zone, grid: LabelGrid, numbers: dict[str, int]) -> None:
        _require_volume(grid, layer.layer)
        self._number = numbers[layer.label]
        self._band = _Band(grid, layer.top, layer.base)

    def paint(self, region: Region, class_map: Classes) -> None:
        class_map[np.broadcast_to(self._band.cells(region), class_map.shape)] = self._number


class _Reflector:
    def __init__(self, layer: spec.Reflector, grid: LabelGrid, numbers: dict[str, int]) -> None:
        self._samples = _require_volume(grid, layer.layer)
        self._number, self._reach = numbers[layer.label], layer.half_thickness
        self._depths = Depths(layer.horizon, grid)

    def paint(self, region: Region, class_map: Classes) -> None:
        z, depths = self._samples[region[2]], self._depths.values(*region[:2])
        # Half a sample more, so that a horizon between two samples has one of them.
        step = abs(float(self._samples[-1] - self._samples[0])) / max(len(self._samples) - 1, 1)
        above, below = depths - max(self._reach, step / 2), depths + max(self._reach, step / 2)
        closed = z <= below[:, :, None] if self._reach >= step / 2 else z < below[:, :, None]
        class_map[(z >= above[:, :, None]) & closed] = self._number


class _FaultSticks:
    def __init__(self, layer: spec.FaultSticks, grid: LabelGrid, numbers: dict[str, int]) -> None:
        _require_volume(grid, layer.layer)
        self._number, self._radius = numbers[layer.label], layer.radius
        self._cells = fault_cells(layer.url, grid)

    def paint(self, region: Region, class_map: Classes) -> None:
        margin = math.ceil(self._radius)
        start = np.array([cells.start - margin for cells in region])
        shape = [cells.stop - cells.start + 2 * margin for cells in region]
        near = self._cells - start
        near = near[((near >= 0) & (near < shape)).all(axis=1)]
        if not len(near):
            return
        off = np.ones(shape, bool)
        off[tuple(near.T)] = False
        own = tuple(slice(margin, n - margin) for n in shape)
        class_map[distance_transform_edt(off)[own] <= self._radius] = self._number


class _Polygons:
    def __init__(self, layer: spec.Polygons, grid: LabelGrid, numbers: dict[str, int]) -> None:
        self._grid, self._band = grid, _Band(grid, layer.top, layer.base)
        shapely = need("shapely", "landform")
        frame = _read_shapes(layer.url)
        if grid.crs and frame.crs is not None:
            frame = frame.to_crs(grid.crs)
        labels = _labels(layer, frame, numbers)
        self._contains = shapely.intersects_xy
        self._shapes = [(shape, n) for shape, n in zip(frame.geometry, labels, strict=True) if n is not None and shape]
        for shape, _ in self._shapes:
            shapely.prepare(shape)

    def paint(self, region: Region, class_map: Classes) -> None:
        x, y = self._grid.places(*region[:2])
        known = np.isfinite(x) & np.isfinite(y)
        for shape, number in self._shapes:
            inside = np.zeros(x.shape, bool)
            inside[known] = self._contains(shape, x[known], y[known])
            if inside.any():
                cells = inside if class_map.ndim == 2 else inside[:, :, None] & self._band.cells(region)
                class_map[cells] = number


class _Points:
    def __init__(self, layer: spec.Points, grid: LabelGrid, numbers: dict[str, int]) -> None:
        self._grid, self._radius, self._reach = grid, layer.radius, layer.half_thickness
        frame = _read_points(layer)
        labels = _labels(layer, frame, numbers)
        used = np.array([n is not None for n in labels], bool)
        self._numbers = [n for n in labels if n is not None]
        self._x, self._y = (frame[name].to_numpy(np.float64)[used] for name in (layer.x, layer.y))
        self._z = None if layer.z is None else frame[layer.z].to_numpy(np.float64)[used]
        with np.errstate(invalid="ignore"):
            # Numbers beyond every integer become the least, which is on no survey.
            self._rows, self._columns = (np.rint(p).astype(np.int64) for p in grid.positions(self._x, self._y))
        inside = (self._rows >= 0) & (self._rows < grid.shape[0])
        inside &= (self._columns >= 0) & (self._columns < grid.shape[1])
        if not inside.any():
            raise DataError("no point lies on the survey", where=layer.url, measured=f"{len(self._x)} points")

    def paint(self, region: Region, class_map: Classes) -> None:
        rows, columns = region[:2]
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        for point, cells in self._near(rows, columns, shape):
            if class_map.ndim == 2:
                class_map[cells] = self._numbers[point]
            else:
                class_map[(*cells, self._depth_range(point, region[2]))] = self._numbers[point]

    def _near(self, rows: slice, columns: slice, shape: tuple[int, int]) -> list[tuple[int, tuple[Any, Any]]]:
        """Points with the cells of the block that are theirs."""
        if self._radius == 0:
            i, j = self._rows - rows.start, self._columns - columns.start
            inside = np.flatnonzero((i >= 0) & (i < shape[0]) & (j >= 0) & (j < shape[1]))
            return [(int(n), (i[n], j[n])) for n in inside]
        x, y = self._grid.places(rows, columns)
        known = np.flatnonzero(np.isfinite(x.ravel()))
        tree = cKDTree(np.column_stack([x.ravel()[known], y.ravel()[known]]))
        found = tree.query_ball_point(np.column_stack([self._x, self._y]), self._radius)
        return [(n, np.unravel_index(known[cells], shape)) for n, cells in enumerate(found) if len(cells)]

    def _depth_range(self, point: int, region: slice) -> slice:
        """Samples of a point's cells, as positions in the block."""
        samples = self._grid.samples
        if self._z is None or samples is None:
            return slice(None)
        part, z = samples[region], self._z[point]
        if self._reach == 0:
            nearest = int(np.abs(samples - z).argmin())
            outside = not samples[0] <= z <= samples[-1] or not region.start <= nearest < region.stop
            return slice(0, 0) if outside else slice(nearest - region.start, nearest - region.start + 1)
        inside = np.flatnonzero(np.abs(part - z) <= self._reach)
        return slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, 0)


class _ClassRaster:
    def __init__(self, layer: spec.ClassRaster, grid: LabelGrid, numbers: dict[str, int]) -> None:
        if grid.samples is not None:
            raise UsageError(f"a layer {layer.layer} is painted on rasters", where=layer.url, measured="a volume")
        target = Grid.of({"crs": grid.crs, "transform": grid.transform}, grid.shape, "survey")
        self._read, _ = label_reader(layer.url, target, layer.resampling)
        self._numbers = np.full(INVALID_CLASS + 1, INVALID_CLASS, np.uint8)
        for value, label in layer.labels.items():
            self._numbers[value] = numbers[label]

    def paint(self, region: Region, class_map: Classes) -> None:
        found = self._numbers[self._read(*region)]
        np.copyto(class_map, found, where=found != INVALID_CLASS)


_PAINTERS: dict[type, Any] = {
    spec.Everywhere: _Everywhere,
    spec.Zone: _Zone,
    spec.Reflector: _Reflector,
    spec.FaultSticks: _FaultSticks,
    spec.Polygons: _Polygons,
    spec.Points: _Points,
    spec.ClassRaster: _ClassRaster,
}


@dataclass(frozen=True)
class LayerStack:
    """All layers of a job, ready to paint any block."""

    painters: tuple[Painter, ...]

    @classmethod
    def of(cls, job: spec.LabelJob, grid: LabelGrid) -> LayerStack:
        """The layers of a job; raises as `make_painter`."""
        numbers = {one.name: number for number, one in enumerate(job.classes)}
        return cls(tuple(make_painter(layer, grid, numbers) for layer in job.layers))

    def paint(self, region: Region) -> Classes:
        """The class map of a block, 255 where no layer says anything."""
        class_map = np.full([cells.stop - cells.start for cells in region], INVALID_CLASS, np.uint8)
        for painter in self.painters:
            painter.paint(region, class_map)
        return class_map


def _require_volume(grid: LabelGrid, layer: str) -> Floats:
    if grid.samples is None:
        raise UsageError(
            f"a layer {layer} is painted on volumes", measured="a raster", limit="polygons, points or class_raster"
        )
    return grid.samples


def _labels(layer: spec.Polygons | spec.Points, frame: Any, numbers: dict[str, int]) -> Sequence[int | None]:
    """The class of each row of a table; None of those left out."""
    if layer.label is not None:
        return [numbers[layer.label]] * len(frame)
    if layer.attribute not in frame.columns:
        raise UsageError(
            "the file has no such column",
            where=layer.url,
            measured=layer.attribute,
            limit=", ".join(map(str, frame.columns)),
        )
    named = layer.labels or {name: name for name in numbers}
    return [numbers[named[str(value)]] if str(value) in named else None for value in frame[layer.attribute]]


def shape_files(url: str) -> list[str]:
    """The names beside each other that make one file of shapes: the parts of a Shapefile, else the file itself."""
    root, name = split_url(url)
    if Path(name).suffix.lower() != ".shp":
        return [name]
    return [key for key, _ in open_storage(root).list() if "/" not in key and Path(key).stem == Path(name).stem]


def _read_shapes(url: str) -> Any:
    """A GeoDataFrame, by the driver that the first bytes name; the parts of a Shapefile are fetched together.

    Raises:
        FormatError: it is none of these formats, or a damaged one.
    """
    geopandas = need("geopandas", "landform")
    root, name = split_url(url)
    storage = open_storage(root)
    head = storage.get_range(name, 0, min(SIGNATURE_BYTES, storage.size(name)))
    head = head.removeprefix(codecs.BOM_UTF8).lstrip()
    driver = next((driver for signature, driver in SHAPES.items() if head.startswith(signature)), None)
    if driver is None:
        raise FormatError(
            "no file of shapes",
            where=url,
            measured=f"starts with {head[:16]!r}",
            limit="GeoPackage, GeoJSON, FlatGeobuf or Shapefile",
            remedy="Convert it with ogr2ogr.",
        )
    with tempfile.TemporaryDirectory() as folder:
        for part in shape_files(url):
            (Path(folder) / part).write_bytes(storage.get(part))
        try:
            return geopandas.read_file(f"{driver}{Path(folder) / name}")
        except Exception as error:  # GDAL, GEOS and what binds them raise many kinds over damaged files.
            words = str(error).replace(f"{folder}/", "").partition("\n")[0][:200]
            raise FormatError("no file of shapes", where=url, measured=words or type(error).__name__) from error


def _read_points(layer: spec.Points) -> Any:
    """A table of points, rows without a number left out."""
    import pandas

    root, name = split_url(layer.url)
    body = open_storage(root).get(name)
    refuse_long_lines(body, layer.url)
    try:
        frame = pandas.read_csv(io.BytesIO(body))
    except (ValueError, pandas.errors.ParserError) as error:
        raise FormatError("no CSV file", where=layer.url, measured=str(error).partition("\n")[0]) from error
    columns = [name for name in (layer.x, layer.y, layer.z) if name is not None]
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise UsageError(
            "the file has no such column",
            where=layer.url,
            measured=missing[0],
            limit=", ".join(map(str, frame.columns)),
        )
    for column in columns:
        frame[column] = pandas.to_numeric(frame[column], errors="coerce")
    frame = frame[np.isfinite(frame[columns]).all(axis=1)]
    if frame.empty:
        raise DataError("file holds no point", where=layer.url)
    return frame
