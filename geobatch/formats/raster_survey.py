"""The arrays and attributes of a raster survey, and its values with what is invalid as NaN."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from geobatch.errors import MismatchError
from geobatch.formats.libraries import need
from geobatch.formats.raster_grid import Mosaic, parse_crs
from geobatch.formats.raster_nodata import suspected, useless_nodata
from geobatch.formats.raster_read import common_nodata, invalid_number
from geobatch.formats.raster_source import Source
from geobatch.formats.raster_spec import Options, Size2
from geobatch.moments import PartialMoments, figures, merge_moments
from geobatch.shards import ArraySpec, clip_grid
from geobatch.survey import COMPLETE, SCHEMA, survey_info

# Version of everything in the raster reader that decides a cell: decoding, validity, precedence, warping.
NUMERICAL_VERSION = 2
RASTER_AXES = ("band", "y", "x")
GRID_MAPPING = "spatial_ref"
MANY_INVALID = 0.5
# Numbers that mark missing cells by custom. The extremes of 8-bit types are ordinary colours.
TAGS_BYTES = 8192
TOLD_SOURCES = 100


def raster_specs(
    mosaic: Mosaic, variable: str, attributes: Mapping[str, Any], chunk: Size2, shard: Size2
) -> tuple[ArraySpec, ArraySpec | None]:
    """The specs of the values and, for integers, of the mask that tells which of them are valid."""
    shape = (mosaic.bands, mosaic.height, mosaic.width)
    chunks, shards = clip_grid(shape[1:], chunk, shard)
    kind = np.dtype(mosaic.dtype)
    fill = invalid_number(mosaic.dtype, common_nodata(mosaic))
    values = ArraySpec(
        variable, RASTER_AXES, shape, kind.name, (1, *chunks), (1, *shards), fill, {**attributes, **grid_attributes()}
    )
    if kind.kind == "f":
        return values, None
    told = {"long_name": "cell has a value", **grid_attributes()}
    return values, ArraySpec("valid", RASTER_AXES, shape, "bool", (1, *chunks), (1, *shards), False, told)


def grid_attributes() -> dict[str, str]:
    """Attributes that tie an array to the survey's grid (CF 1.11, section 5.6)."""
    return {"grid_mapping": GRID_MAPPING, "coordinates": GRID_MAPPING}


def axes(
    mosaic: Mosaic,
) -> tuple[list[ArraySpec], dict[str, npt.NDArray[Any]]]:
    """Specs and values of band numbers, cell centres and the grid mapping."""
    a, _, c, _, e, f = mosaic.transform
    values: dict[str, npt.NDArray[Any]] = {
        "band": np.array(mosaic.tiles[0].bands, np.int32),
        "y": f + e * (np.arange(mosaic.height) + 0.5),
        "x": c + a * (np.arange(mosaic.width) + 0.5),
        GRID_MAPPING: np.array(0, np.int32),
    }
    named = {"band": {"long_name": "number of the band in its file"}, **_axis_names(mosaic.crs)}
    specs = [ArraySpec.small(name, (name,), values[name], **named[name]) for name in RASTER_AXES]
    return [*specs, ArraySpec.small(GRID_MAPPING, (), values[GRID_MAPPING], **grid_mapping(mosaic))], values


def grid_mapping(mosaic: Mosaic) -> dict[str, Any]:
    """The attributes by which rioxarray and GDAL recognise CRS and transform."""
    a, b, c, d, e, f = mosaic.transform
    transform = {"GeoTransform": " ".join(repr(float(number)) for number in (c, a, b, f, d, e))}
    if not mosaic.crs:
        return transform
    pyproj = need("pyproj", "landform")
    return {**json.loads(json.dumps(pyproj.CRS.from_wkt(mosaic.crs).to_cf())), "spatial_ref": mosaic.crs, **transform}


def crs_name(wkt: str) -> str | None:
    """`EPSG:…` when that code means the very same CRS, else the WKT; None where there is none."""
    if not wkt:
        return None
    crs = parse_crs(wkt, "raster")
    code = crs.to_epsg()
    return f"EPSG:{code}" if code and parse_crs(f"EPSG:{code}", "raster") == crs else wkt


def axis_units(wkt: str) -> str:
    """Unit of the coordinates: `degrees`, `m`, or another length; empty where no CRS tells."""
    if not wkt:
        return ""
    crs = parse_crs(wkt, "raster")
    if crs.is_geographic:
        return "degrees"
    return str({"metre": "m", "meter": "m"}.get(crs.linear_units, crs.linear_units))


def identity_of(digests: Sequence[str], values: Mapping[str, npt.NDArray[Any]], crs: str) -> str:
    """SHA-256 of all that decides a cell and its place: stored shards, axes, CRS."""
    whole = hashlib.sha256(f"geobatch raster {NUMERICAL_VERSION} {crs}".encode())
    for digest in digests:
        whole.update(digest.encode())
    for name in RASTER_AXES:
        whole.update(values[name].tobytes())
    return whole.hexdigest()


def merge_figures(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the pieces found, together: moments and counts per band, cells of several tiles."""
    bands: list[dict[str, Any]] = []
    totals = dict.fromkeys(("hidden", "inexact", "overlap", "differing"), 0)
    for part in parts:
        for name in totals:
            totals[name] += part[name]
        for band in part["bands"]:
            while len(bands) <= band["band"]:
                bands.append({"moments": PartialMoments(), "invalid": 0, "extremes": {}, "classes": {}})
            total = bands[band["band"]]
            total["moments"] = merge_moments(total["moments"], PartialMoments(*_numbers(band["moments"])))
            total["invalid"] += band["invalid"]
            for name in ("extremes", "classes"):
                for value, count in band[name].items():
                    total[name][value] = total[name].get(value, 0) + count
    return {**totals, "bands": bands}


def band_statistics(merged: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Count, mean, std, rms, min, max and share of invalid cells, per band."""
    found = []
    for band in merged["bands"]:
        told = figures(band["moments"])
        cells = band["moments"].count + band["invalid"]
        found.append({**told, "invalid": band["invalid"], "invalid_share": band["invalid"] / max(cells, 1)})
    return found


def class_flags_of(mosaic: Mosaic, merged: Mapping[str, Any]) -> dict[str, Any]:
    """The colour table as CF flags of the classes that occur; empty where the raster has no table."""
    palette = {value: colour for value, *colour in mosaic.tiles[0].palette}
    if not palette:
        return {}
    values = sorted(int(value) for value in merged["bands"][0]["classes"])
    colors = ("#{:02x}{:02x}{:02x}".format(*palette.get(value, (0, 0, 0))) for value in values)
    return {
        "flag_values": values,
        "flag_meanings": " ".join(f"class_{value}" for value in values),
        "flag_colors": " ".join(colors),
    }


def describe_values(mosaic: Mosaic, variable: str, units: str | None) -> dict[str, Any]:
    """Attributes of the values: names, units and nodata as far as they hold for every band."""
    tile = mosaic.tiles[0]
    told: dict[str, Any] = {
        "long_name": "elevation" if variable == "elevation" else " ".join(filter(None, tile.names[:1]))
    }
    told["long_name"] = told["long_name"] or "raster values"
    own = set(tile.units)
    told["units"] = units or (own.pop() if len(own) == 1 else "") or ""
    told["band_names"] = [name or f"band {number}" for name, number in zip(tile.names, tile.bands, strict=True)]
    nodata = common_nodata(mosaic)
    if np.dtype(mosaic.dtype).kind in "iu" and nodata is not None and nodata == invalid_number(mosaic.dtype, nodata):
        told["nodata"] = int(nodata)
    return told


def warnings_of(mosaic: Mosaic, merged: Mapping[str, Any], faults: int) -> list[str]:
    """What should be looked at before the survey is used, the worst first."""
    found = []
    if faults:
        found.append(f"{faults} blocks or tiles do not read and are invalid: the quality table names them")
    for number, band in enumerate(merged["bands"], 1):
        cells = band["moments"].count + band["invalid"]
        if not band["moments"].count:
            found.append(f"band {number}: no cell is valid")
        elif band["invalid"] > MANY_INVALID * cells:
            found.append(f"band {number}: {band['invalid'] / cells:.1%} of the cells are invalid")
        found += [f"band {number}: {sentence}" for sentence in suspected(mosaic, number - 1, band, cells)]
    if merged["differing"]:
        found.append(
            f"tiles overlap with different values in {merged['differing']} of {merged['overlap']} shared cells"
        )
    if not mosaic.crs:
        found.append("no CRS: nothing tells where on Earth it lies; --set crs=EPSG:… names it")
    found += useless_nodata(mosaic)
    if len({tile.dtype for tile in mosaic.tiles}) > 1:
        found.append(f"tiles have different types, stored as {mosaic.dtype}")
    if np.dtype(mosaic.dtype).kind == "f" and merged["hidden"]:
        found.append(f"{merged['hidden']} cells under a mask, or NaN beside another nodata, lose their own number")
    if merged["inexact"]:
        found.append(f"{merged['inexact']} numbers do not come back from value = factor * number + summand")
    return found


def class_counts(merged: dict[str, Any]) -> dict[int, int]:
    """Cells per class of a raster with a colour table."""
    return {int(value): count for value, count in merged["bands"][0]["classes"].items()} if merged["bands"] else {}


def describe(
    mosaic: Mosaic,
    merged: dict[str, Any],
    options: Options,
    src_url: str,
    sources: Sequence[Source],
    warnings: list[str],
) -> dict[str, Any]:
    """The `geobatch` attribute of the survey, still without identity."""
    tile = mosaic.tiles[0]
    bands = [
        {
            "name": tile.names[i] or f"band {tile.bands[i]}",
            "nodata": _json_number(tile.nodata[i]),
            "scale": tile.scales[i],
            "offset": tile.offsets[i],
            "units": tile.units[i],
            **figures,
        }
        for i, figures in enumerate(band_statistics(merged))
    ]
    warned = list(warnings)
    if options.crs and any(tile.tags.get("crs_of_file") for tile in mosaic.tiles):
        warned.append(f"the files name another CRS than {options.crs}, which was given and counts")
    info = {
        "schema": SCHEMA,
        "kind": "raster",
        "variable": options.variable,
        "quantity": options.quantity,
        "crs": crs_name(mosaic.crs),
        "transform": list(mosaic.transform),
        "shape": [mosaic.bands, mosaic.height, mosaic.width],
        "units_of_axes": axis_units(mosaic.crs),
        "bands": bands,
        "statistics": {name: bands[0][name] for name in ("count", "mean", "std", "rms", "min", "max")},
        "classes": class_counts(merged),
        "masked": any(tile.masked for tile in mosaic.tiles),
        "hidden": merged["hidden"],
        "source": {
            "url": src_url,
            "size_bytes": sum(source.size_bytes for source in sources),
            "tiles": len(mosaic.tiles),
            "versions": [[source.url, source.version] for source in sources[:TOLD_SOURCES]],
            "dtype": tile.dtype if mosaic.exact else mosaic.dtype,
            "exact": mosaic.exact,
            "palette": [list(colour) for colour in tile.palette],
            "tags": tags_of(mosaic),
        },
        "warnings": warned,
        "numerical_version": NUMERICAL_VERSION,
        "state": COMPLETE,
    }
    return {**info, "attribution": options.attribution} if options.attribution else info


def valid_raster(dataset: xr.Dataset, where: str = "") -> xr.DataArray:
    """The survey's values `(band, y, x)`, lazily, as floats with NaN where invalid.

    Integers of up to 16 bits become float32, larger ones float64. Dask-backed when `dataset` is.

    Raises:
        MismatchError: the survey is no raster.
    """
    info = survey_info(dataset, where)
    name = info.get("variable", "values")
    if info.get("kind") != "raster" or name not in dataset:
        raise MismatchError(
            "survey holds no raster", where=where, measured=f"kind {info.get('kind')}", limit="kind raster"
        )
    values: xr.DataArray = dataset[name]
    if values.dtype.kind == "f":
        return values
    floats = values.astype("float32" if values.dtype.itemsize <= 2 else "float64")
    floats = floats.where(dataset["valid"]) if "valid" in dataset else floats
    floats.attrs = {key: value for key, value in values.attrs.items() if key != "nodata"}
    named: xr.DataArray = floats.rename(name)
    return named


def tags_of(mosaic: Mosaic) -> dict[str, str]:
    """Tags of the only file, as far as they are short."""
    tags = mosaic.tiles[0].tags if len(mosaic.tiles) == 1 else {}
    return dict(tags) if len(json.dumps(tags)) <= TAGS_BYTES else {}


def _axis_names(wkt: str) -> dict[str, dict[str, Any]]:
    crs = parse_crs(wkt, "raster") if wkt else None
    if crs is None:
        return {axis: {"long_name": f"{axis} of the cell centre", "axis": axis.upper()} for axis in "yx"}
    if crs.is_geographic:
        return {
            "y": {"long_name": "latitude", "standard_name": "latitude", "units": "degrees_north", "axis": "Y"},
            "x": {"long_name": "longitude", "standard_name": "longitude", "units": "degrees_east", "axis": "X"},
        }
    units = axis_units(wkt)
    return {
        axis: {
            "long_name": f"{axis} coordinate of the cell centre",
            "standard_name": f"projection_{axis}_coordinate",
            "units": units,
            "axis": axis.upper(),
        }
        for axis in "yx"
    }


def _json_number(value: float | None) -> float | str | None:
    """JSON has no NaN."""
    return value if value is None or math.isfinite(value) else repr(value)


def _numbers(moments: Sequence[Any]) -> tuple[Any, ...]:
    """Moments from JSON, where what was never reached is None."""
    count, mean, squares, low, high = moments
    return count, mean, squares, math.inf if low is None else low, -math.inf if high is None else high
