"""Small raster files for tests."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

CRS = "EPSG:32717"


def write_tiff(
    path: Path,
    values: npt.NDArray[Any],
    *,
    crs: str | None = CRS,
    corner: tuple[float, float] = (700000.0, 9500000.0),
    cell: tuple[float, float] = (10.0, -10.0),
    transform: Any = None,
    mask: npt.NDArray[np.bool_] | None = None,
    colormap: dict[int, tuple[int, int, int, int]] | None = None,
    names: tuple[str, ...] = (),
    scales: tuple[float, ...] = (),
    offsets: tuple[float, ...] = (),
    **options: Any,
) -> Path:
    """A GeoTIFF of `(band, y, x)` or `(y, x)` values; `cell` None leaves it without a geotransform."""
    import rasterio

    bands = values if values.ndim == 3 else values[None]
    place = transform or (rasterio.Affine(cell[0], 0, corner[0], 0, cell[1], corner[1]) if cell else None)
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = bands.shape
    how = {"count": count, "height": height, "width": width, "dtype": bands.dtype.name, "crs": crs, "transform": place}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="GTiff", **how, **options) as file:
            file.write(bands)
            if mask is not None:
                file.write_mask(mask)
            if colormap:
                file.write_colormap(1, colormap)
            if scales:
                file.scales, file.offsets = scales, offsets
            for number, name in enumerate(names, 1):
                file.set_band_description(number, name)
    return path


def tiled(**options: Any) -> dict[str, Any]:
    """Options of a compressed file with blocks of 64 x 64 cells."""
    return {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate", **options}


def field(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> npt.NDArray[Any]:
    """Random values, nowhere zero."""
    generator = np.random.default_rng(seed)
    return (
        generator.integers(1, 200, shape) if np.dtype(dtype).kind in "iu" else generator.normal(900, 99, shape)
    ).astype(dtype)
