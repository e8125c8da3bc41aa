"""Raster survey or class map to a Cloud Optimized GeoTIFF, equal to its source where nothing was resampled.

survey → rows of blocks → tiled GeoTIFF in a temporary folder → COG driver (overviews) → one streamed object
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from geobatch.errors import MismatchError, UsageError
from geobatch.formats.libraries import need
from geobatch.formats.raster_grid import parse_crs
from geobatch.formats.raster_read import unscaled
from geobatch.formats.raster_source import GDAL_CACHE_BYTES
from geobatch.storage import absolute_url, open_storage, split_url
from geobatch.survey import INVALID_CLASS, class_flags, class_names, open_survey, require_complete, survey_info

COG_BLOCK = 512
STRIP_BYTES = 256 * 2**20
COPY_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Form:
    """How the file is written.

    Attributes:
        dtype: Of its numbers.
        nodata: Number that marks invalid cells, None where there is none.
        masked: A mask is written, since nodata does not mark every invalid cell.
        scales: Factor per band.
        offsets: Summand per band.
        names: Description per band.
        units: Unit per band.
        palette: Colours `(value, red, green, blue)`, empty where there is no table.
        tags: What else the source said of itself.
    """

    dtype: str
    nodata: float | None
    masked: bool
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    names: tuple[str, ...]
    units: tuple[str, ...]
    palette: tuple[tuple[int, ...], ...] = ()
    tags: tuple[tuple[str, str], ...] = ()


def is_raster(src_url: str) -> bool:
    """True when what is at the URL is a survey over x and y."""
    return {"y", "x"} <= set(open_survey(src_url).sizes)


def export_cog(
    src_survey_url: str,
    dst_url: str,
    *,
    variable: str | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """A summary of the COG written to `dst_url`; it appears only when it is whole.

    Numbers, nodata, mask, transform, CRS, colours, names and scales are those of the ingested files, bit for bit,
    unless they were warped or `inspect` tells that cells lost their own number. A temporary folder takes the file
    twice, since overviews stand before the data in a COG. Memory is bounded.

    Args:
        src_survey_url: A raster survey, or one with a `class_map` over `(y, x)`.
        dst_url: The file.
        variable: `class_map`, `probability:NAME`, or the survey's own values, which is the default where it has some.
        overwrite: Replace an existing file.
        on_progress: Called with rows done and rows in all.

    Raises:
        UsageError: the file exists, or the variable does not.
        MismatchError: the survey has no grid of x and y.
    """
    src_survey_url, dst_url = absolute_url(src_survey_url), absolute_url(dst_url)
    root, name = split_url(dst_url)
    if not overwrite and open_storage(root).exists(name):
        raise UsageError("a file is there already", where=dst_url, remedy="Give another output, or --overwrite.")
    dataset = open_survey(src_survey_url)
    require_complete(dataset, src_survey_url)
    array, title = _select(dataset, variable, src_survey_url)
    form = _form(dataset, array, title)
    transform, crs = _place(dataset, src_survey_url)
    rasterio = need("rasterio", "landform")
    with tempfile.TemporaryDirectory(prefix="geobatch-") as folder, rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES):
        plain, cog = Path(folder) / "plain.tif", Path(folder) / "cog.tif"
        valid = dataset["valid"] if form.masked and "valid" in dataset else None
        _write_plain(plain, array, valid, form, transform, crs, on_progress)
        _copy_as_cog(plain, cog, form, title)
        plain.unlink()
        with cog.open("rb") as file, open_storage(root).open_writer(name) as write:
            while body := file.read(COPY_BYTES):
                write(body)
        size = cog.stat().st_size
    return {"url": dst_url, "variable": title, "shape": list(array.shape), "dtype": form.dtype, "bytes": size}


def _select(dataset: xr.Dataset, variable: str | None, where: str) -> tuple[xr.DataArray, str]:
    """The array to export, `(band, y, x)`, and its name for the summary."""
    info = survey_info(dataset)
    own = info.get("variable") if info.get("kind") == "raster" else None
    title = variable or own or "class_map"
    name, _, chosen = title.partition(":")
    known = [str(n) for n, array in dataset.data_vars.items() if {"y", "x"} <= set(array.dims) and n != "valid"]
    if name not in known:
        raise UsageError(
            "no such raster in the survey", where=where, measured=name, limit=", ".join(known) or "a variable over y, x"
        )
    array = dataset[name]
    if chosen:
        names = list(class_names(dataset["class_map"]).values()) if "class_map" in dataset else []
        if chosen not in names or "class" not in array.dims:
            raise UsageError("no such class", where=where, measured=chosen, limit=", ".join(names))
        array = array.isel({"class": names.index(chosen)})
    leading = [axis for axis in array.dims if axis not in ("y", "x")]
    if len(leading) > 1:
        raise MismatchError("array has more axes than a raster", where=where, measured=str(array.dims))
    if not leading:
        array = array.expand_dims("band")
    return array.transpose(*(leading or ["band"]), "y", "x"), title


def _form(dataset: xr.Dataset, array: xr.DataArray, title: str) -> Form:
    """How an array is written: as its files were, or as classes and floats are by custom."""
    info = survey_info(dataset)
    bands = array.shape[0]
    if title == info.get("variable") and "bands" in info:
        told, source = info["bands"], info["source"]
        scaled = any(band["scale"] != 1 or band["offset"] != 0 for band in told)
        nodata = {str(band["nodata"]) for band in told}
        common = float(told[0]["nodata"]) if len(nodata) == 1 and told[0]["nodata"] is not None else None
        dtype = np.dtype(source["dtype"] if scaled or source["exact"] else array.dtype)
        if dtype.kind in "iu" and common is not None and not _holds(dtype, common):
            common = None
        invalid = any(band["invalid"] for band in told)
        return Form(
            dtype=dtype.name,
            nodata=common,
            masked=invalid and (bool(info["hidden"]) or (common is None and dtype.kind != "f")),
            scales=tuple(band["scale"] for band in told),
            offsets=tuple(band["offset"] for band in told),
            names=tuple("" if band["name"] == f"band {i}" else band["name"] for i, band in enumerate(told, 1)),
            units=tuple(band["units"] for band in told),
            palette=tuple(tuple(colour) for colour in source["palette"]),
            tags=tuple(sorted(source["tags"].items())),
        )
    plain: dict[str, Any] = {
        "scales": (1.0,) * bands,
        "offsets": (0.0,) * bands,
        "units": (str(array.attrs.get("units", "")),) * bands,
    }
    if array.dtype == np.uint8:
        values, _, colors = class_flags(array.attrs)
        rgb = [tuple(int(color[i : i + 2], 16) for i in (1, 3, 5)) for color in colors]
        palette = tuple((value, *colour) for value, colour in zip(values, rgb, strict=False) if value != INVALID_CLASS)
        return Form("uint8", float(INVALID_CLASS), False, names=(title,) * bands, palette=palette, **plain)
    return Form(array.dtype.name, math.nan if array.dtype.kind == "f" else None, False, names=(title,) * bands, **plain)


def _holds(dtype: np.dtype[Any], value: float) -> bool:
    limits = np.iinfo(dtype)
    return math.isfinite(value) and limits.min <= value <= limits.max


def _place(dataset: xr.Dataset, where: str) -> tuple[Any, Any]:
    """Affine transform and CRS, from the survey's description or from its evenly spaced axes."""
    need("rasterio", "landform")
    from rasterio import Affine

    info = survey_info(dataset)
    crs = parse_crs(info["crs"], where) if info.get("crs") else None
    if info.get("transform"):
        return Affine(*info["transform"]), crs
    steps = []
    for axis in ("x", "y"):
        values = np.asarray(dataset[axis].values, np.float64)
        step = (values[-1] - values[0]) / max(values.size - 1, 1)
        if values.size < 2 or not np.allclose(np.diff(values), step, rtol=1e-6):
            raise MismatchError(
                "axis is not evenly spaced", where=f"{where} {axis}", remedy="Export needs a raster survey."
            )
        steps.append((step, values[0] - step / 2))
    (a, c), (e, f) = steps
    return Affine(a, 0.0, c, 0.0, e, f), crs


def _strips(array: xr.DataArray) -> Iterator[slice]:
    """Rows to be read together: whole chunks of the survey, within memory."""
    bands, height, width = array.shape
    unit = max((array.encoding.get("preferred_chunks") or {}).get("y", 0), COG_BLOCK)
    rows = max(1, STRIP_BYTES // max(1, bands * width * max(array.dtype.itemsize, 8) * unit)) * unit
    for first in range(0, height, rows):
        yield slice(first, min(first + rows, height))


def _write_plain(
    path: Path,
    array: xr.DataArray,
    valid: xr.DataArray | None,
    form: Form,
    transform: Any,
    crs: Any,
    on_progress: Callable[[int, int], None],
) -> None:
    """The tiled GeoTIFF that the COG is made of."""
    rasterio = need("rasterio", "landform")
    bands, height, width = array.shape
    # Sizes of tiles are multiples of 16 (TIFF 6.0, section 15).
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=width,
        height=height,
        count=bands,
        dtype=form.dtype,
        crs=crs,
        transform=transform,
        nodata=form.nodata,
        tiled=True,
        blockxsize=COG_BLOCK,
        blockysize=COG_BLOCK,
        compress="deflate",
        zlevel=1,
        BIGTIFF="IF_SAFER",
    ) as out:
        _write_header(out, form)
        for rows in _strips(array):
            block = array.isel(y=rows)
            window = rasterio.windows.Window.from_slices(rows, slice(0, width))
            out.write(_numbers(block.values, form), window=window)
            if valid is not None:
                # A TIFF has one mask for all of its bands: a cell counts where any band has a value.
                out.write_mask(valid.isel(y=rows).values.any(axis=0), window=window)
            elif form.masked:
                out.write_mask(np.isfinite(block.values).any(axis=0), window=window)
            on_progress(rows.stop, height)


def _write_header(out: Any, form: Form) -> None:
    out.update_tags(**dict(form.tags))
    out.scales, out.offsets = form.scales, form.offsets
    for number, (name, unit) in enumerate(zip(form.names, form.units, strict=True), 1):
        if name:
            out.set_band_description(number, name)
        if unit:
            out.set_band_unit(number, unit)
    if form.palette:
        out.write_colormap(1, {value: (*colour, 255) for value, *colour in form.palette})


def _numbers(values: npt.NDArray[Any], form: Form) -> npt.NDArray[Any]:
    """The numbers of the file that stand for the values."""
    invalid = np.isnan(values) if values.dtype.kind == "f" else None
    if any(scale != 1 for scale in form.scales) or any(offset != 0 for offset in form.offsets):
        numbers = unscaled(values, form.scales, form.offsets, form.dtype)
    else:
        numbers = values.astype(form.dtype)
    if invalid is not None and form.nodata is not None:
        numbers[invalid] = form.nodata
    return numbers


def _copy_as_cog(plain: Path, cog: Path, form: Form, title: str) -> None:
    from rasterio.shutil import copy

    classes = bool(form.palette) or title == "class_map" or np.dtype(form.dtype).kind != "f"
    copy(
        plain,
        cog,
        driver="COG",
        compress="deflate",
        blocksize=COG_BLOCK,
        bigtiff="IF_SAFER",
        # Means of classes are no classes.
        overview_resampling="nearest" if classes else "average",
        statistics=False,
    )
