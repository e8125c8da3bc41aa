"""What every preprocessing step is: a frozen schema with declared reach, figures that are fitted, and `apply`."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import xarray as xr
from pydantic import BaseModel, ConfigDict

from geobatch.errors import UsageError

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Halo = dict[str, tuple[int, int]]


class Frozen(BaseModel):
    """A schema whose objects do not change and which knows every key it takes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class StepBase(Frozen):
    """A step of a chain.

    Attributes:
        makes: Quantity and unit of what comes out, where they are other than those of what goes in.
    """

    makes: ClassVar[tuple[str, str] | None] = None

    @property
    def fitted(self) -> bool:
        """True when the step holds every figure it needs."""
        return True

    @property
    def halo(self) -> Halo:
        """Cells needed (before, after) each sample, per axis name; axes that need none are left out."""
        return {}

    @property
    def whole_axes(self) -> frozenset[str]:
        """Names of the axes on which every sample depends on all others of its line."""
        return frozenset()

    def sampled(self, x: xr.DataArray) -> Self:
        """The step with the sample interval of `x`, where it needs one: only coordinates and attributes are read."""
        return self

    def fit(self, x: xr.DataArray) -> Self:
        """The step with its statistics fitted over the whole of `x`; itself where it has none."""
        return self.sampled(x)


def dask_data(x: xr.DataArray, who: str) -> Any:
    """The Dask array in `x`; raises UsageError in the name of `who` when `x` holds another kind of array."""
    if x.chunks is None:
        raise UsageError(
            f"{who} takes a Dask-backed array",
            where=f"{x.name or 'array'} {x.shape}",
            remedy="Use geobatch.preprocess.read_region and prepare, or select the region and call .chunk().",
        )
    return x.data


def axis_number(x: xr.DataArray, axis: str, where: str) -> int:
    """The number of the axis called `axis`; raises UsageError in the name of `where` when there is none."""
    if axis not in x.dims:
        raise UsageError(
            f"the survey has no axis {axis!r}",
            where=where,
            limit=f"one of {', '.join(map(str, x.dims))}",
            remedy="Name one of the survey's axes.",
        )
    return x.dims.index(axis)


def not_fitted(step: str) -> UsageError:
    """The error of a step that is used before it holds its figures."""
    return UsageError(
        f"the step {step} has no statistics yet",
        remedy="Call fit() on the whole survey first, or load the chain from a bundle.",
    )
