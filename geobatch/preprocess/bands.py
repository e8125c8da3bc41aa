"""A raster as a network takes it: chosen bands and derivatives of elevation, on one scale, without a gap."""

from __future__ import annotations

from typing import Annotated, Self

import numpy as np
import numpy.typing as npt
import xarray as xr
from pydantic import Field, model_validator

from geobatch.errors import DataError, UsageError
from geobatch.landform.terrain import Aspect, Curvature, Hillshade, Slope
from geobatch.preprocess.base import Frozen

_SMALLEST = 1e-12

Derivative = Annotated[Slope | Aspect | Curvature | Hillshade, Field(discriminator="step")]
Window = tuple[slice, slice]


class Bands(Frozen):
    """Bands and derivatives to channels of mean 0 and deviation 1, with figures fitted to the ground of training.

    Attributes:
        bands: Numbers of the raster's bands, from 1, that are channels; all of them when left out.
        derivatives: Of `elevation`, each one more channel: slope, aspect, curvature, hillshade (`landform.terrain`). An
            aspect becomes two, its sine and cosine: north has no jump.
        elevation: Number of the band that holds it.
        relative: Take the mean of each window off the bands, so that a height above the sea decides nothing.
        mean: Fitted, per channel.
        deviation: Fitted, likewise.
    """

    bands: tuple[int, ...] | None = None
    derivatives: tuple[Derivative, ...] = ()
    elevation: int = Field(default=1, ge=1)
    relative: bool = False
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.bands == () and not self.derivatives:
            raise ValueError("bands: neither a band nor a derivative is taken")
        return self

    @property
    def directed(self) -> bool:
        """Whether a channel knows where north is, so that no mirror image of it is true."""
        return any(isinstance(step, (Aspect, Hillshade)) for step in self.derivatives)

    @property
    def halo(self) -> int:
        """Cells needed on every side."""
        return max((step.reach for step in self.derivatives), default=0)

    def read(self, raster: xr.DataArray, window: Window) -> npt.NDArray[np.float32]:
        """Channels `(channel, y, x)` float32 of a window, NaN where invalid; scaled if fitted.

        Args:
            raster: `(band, y, x)`, lazy.
            window: In cells of `(y, x)`.

        Raises:
            UsageError: a band is not there.
        """
        wider, inner = _widened(window, self.halo, (raster.sizes["y"], raster.sizes["x"]))
        part = raster.isel(y=wider[0], x=wider[1]).load()
        numbers = self.bands if self.bands is not None else tuple(range(1, part.sizes["band"] + 1))
        for number in (*numbers, *((self.elevation,) if self.derivatives else ())):
            if not 1 <= number <= part.sizes["band"]:
                raise UsageError("no such band", where="bands", measured=number, limit=f"1 to {part.sizes['band']}")
        values = [part.isel(band=number - 1, y=inner[0], x=inner[1]).values.astype(np.float32) for number in numbers]
        if self.relative:
            values = [band - np.nanmean(band) if np.isfinite(band).any() else band for band in values]
        if self.derivatives:
            elevation = part.isel(band=self.elevation - 1, drop=True).astype(np.float32).chunk()
            for step in self.derivatives:
                values += [part.isel(y=inner[0], x=inner[1]).values for part in _parts(step, elevation)]
        channels: npt.NDArray[np.float32] = np.stack(values).astype(np.float32)
        if not self.mean:
            return channels
        shape = (-1, 1, 1)
        scaled: npt.NDArray[np.float32] = (
            (channels - np.reshape(self.mean, shape)) / np.reshape(self.deviation, shape)
        ).astype(np.float32)
        return scaled

    def fit(self, raster: xr.DataArray, windows: list[Window], where: str = "") -> Bands:
        """The same with the figures of these windows.

        Raises:
            DataError: a channel has no value there, or only one.
        """
        plain = self.model_copy(update={"mean": (), "deviation": ()})
        count, total, square = 0.0, 0.0, 0.0
        for window in windows:
            values = plain.read(raster, window).astype(np.float64)
            known = np.isfinite(values)
            values = np.where(known, values, 0)
            count, total, square = (
                count + known.sum(axis=(1, 2)),
                total + values.sum(axis=(1, 2)),
                square + (values**2).sum(axis=(1, 2)),
            )
        mean = total / np.maximum(count, 1)
        deviation = np.sqrt(np.maximum(square / np.maximum(count, 1) - mean**2, 0))
        for number in np.flatnonzero(~(deviation > _SMALLEST)):
            raise DataError(
                "a channel is the same everywhere",
                where=where,
                measured=f"channel {number + 1} of {np.size(mean)}",
                limit="two values on the ground of training",
                remedy="Leave it out of bands or derivatives.",
            )
        return self.model_copy(update={"mean": tuple(mean.tolist()), "deviation": tuple(deviation.tolist())})


def _parts(step: Derivative, elevation: xr.DataArray) -> list[xr.DataArray]:
    """The channels of a derivative, computed; a flat cell has no aspect, and nothing points anywhere there."""
    made = step.apply(elevation).compute(scheduler="synchronous")
    if not isinstance(step, Aspect):
        return [made]
    slope = Slope(z_factor=step.z_factor, cell_m=step.cell_m, method=step.method).apply(elevation)
    flat = (slope == 0).compute(scheduler="synchronous")
    angle = np.radians(made.values)
    return [made.copy(data=part).where(~flat, 0) for part in (np.sin(angle), np.cos(angle))]


def _widened(window: Window, by: int, shape: tuple[int, int]) -> tuple[Window, Window]:
    """The window with so many cells around it, as far as there are any, and where it lies in that."""
    wider = [slice(max(0, a.start - by), min(size, a.stop + by)) for a, size in zip(window, shape, strict=True)]
    inner = [slice(a.start - w.start, a.stop - w.start) for a, w in zip(window, wider, strict=True)]
    return (wider[0], wider[1]), (inner[0], inner[1])
