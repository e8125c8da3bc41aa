"""What an ingest of rasters may be told."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from geobatch.formats.raster_grid import Resampling
from geobatch.formats.raster_read import Overlap
from geobatch.formats.spec import IngestOptions

Size2 = tuple[int, int]


class Options(IngestOptions):
    """Options of rasters.

    Attributes:
        quantity: What the values are, such as `elevation`, which is then the variable's name too.
        units: Unit of the values; from the file when not given.
        nodata: Number that marks invalid cells, in place of what the files say; also where theirs cannot occur.
        transform: `[a, b, c, d, e, f]`, x = a column + b row + c and y = d column + e row + f, for files without one.
        to_crs: Warp onto a grid in this CRS.
        resolution: Resample onto cells of this size, one number or `[x, y]`, in units of the CRS.
        resampling: `nearest`, `bilinear`, `cubic`, `average` or `mode`; how cells are made when they are warped.
        overlap: `first` or `last` of the overlapping tiles by name counts, or `refuse` when they differ.
        asset: Name of the asset to take from STAC items.
        chunk: Unit of reading `(y, x)`, clipped to the survey.
        shard: Unit of writing, a multiple of `chunk`, clipped to the survey.
    """

    quantity: str | None = Field(default=None, pattern=r"^[a-z][a-z0-9_]*$")
    units: str | None = None
    nodata: float | None = None
    transform: tuple[float, float, float, float, float, float] | None = None
    to_crs: str | None = None
    resolution: tuple[float, float] | None = None
    resampling: Resampling = "nearest"
    overlap: Overlap = "first"
    asset: str | None = None
    chunk: Size2 = (256, 256)
    shard: Size2 = (1024, 1024)

    @field_validator("resolution", mode="before")
    @classmethod
    def _square(cls, value: Any) -> Any:
        return (value, value) if isinstance(value, int | float) else value

    @field_validator("resolution")
    @classmethod
    def _positive(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and min(value) <= 0:
            raise ValueError("resolution is not above 0")
        return value

    @property
    def variable(self) -> str:
        """Name of the array of values."""
        return self.quantity or "values"
