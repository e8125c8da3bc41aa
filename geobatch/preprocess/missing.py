"""The step that fills invalid samples."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import xarray as xr
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from geobatch.preprocess.base import Float32Array, Halo, StepBase, axis_number, dask_data
from geobatch.preprocess.overlap import map_along_axis


class Fill(StepBase):
    """Fills invalid samples.

    `interpolate`: each invalid sample is given the straight line between the nearest valid samples before and
    after it along the axis `along`, each looked for no further than `max_gap_traces` cells away. With only one of
    them in reach the sample takes its value; with neither it stays invalid. A gap of up to `max_gap_traces` traces
    is thus bridged whole, and a wider one is closed inwards from both sides by that many traces.
    `zero`: invalid samples become 0 and are valid from then on.
    `constant`: the same with `value`, in the unit of the data.
    `mask`: invalid samples stay invalid; the predictor masks them.
    """

    step: Literal["fill"] = "fill"
    method: Literal["interpolate", "zero", "constant", "mask"] = "interpolate"
    along: str = "crossline"
    max_gap_traces: int = Field(default=5, ge=1, le=1000)
    value: float | None = None

    @model_validator(mode="after")
    def _value_of_constant(self) -> Self:
        if (self.method == "constant") != (self.value is not None):
            raise ValueError("fill takes `value` with method `constant`, and only then")
        return self

    @model_serializer(mode="wrap")
    def _without_nothing(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A step without a value reads, and hashes, as it did in bundles that knew none."""
        document: dict[str, Any] = serialize(self)
        if self.value is None:
            del document["value"]
        return document

    @property
    def halo(self) -> Halo:
        """`max_gap_traces` on both sides along the axis of interpolation."""
        return {self.along: (self.max_gap_traces, self.max_gap_traces)} if self.method == "interpolate" else {}

    def apply(self, x: xr.DataArray) -> xr.DataArray:
        """`x` with its invalid samples filled by the method."""
        data = dask_data(x, f"the step {self.step}")
        if self.method == "mask":
            return x
        if self.method in ("zero", "constant"):
            filled = data.map_blocks(_replace_invalid, np.float32(self.value or 0), dtype=data.dtype)
            return x.copy(deep=False, data=filled)
        axis = axis_number(x, self.along, "step fill, key along")
        function = partial(interpolate_gaps, axis=axis, reach=self.max_gap_traces)
        return x.copy(deep=False, data=map_along_axis(function, data, axis, self.max_gap_traces, self.max_gap_traces))


def _replace_invalid(block: Float32Array, value: np.float32) -> Float32Array:
    return np.where(np.isfinite(block), block, value)


def interpolate_gaps(block: Float32Array, axis: int, reach: int) -> Float32Array:
    """The block with each invalid sample filled from its nearest valid neighbours within `reach` along `axis`."""
    lines = np.moveaxis(block, axis, 0)
    shape = lines.shape
    table = lines.reshape(shape[0], -1)
    rows, columns = np.nonzero(~np.isfinite(table))
    if rows.size == 0:
        return block
    value_before, distance_before = _nearest(table, rows, columns, -1, reach)
    value_after, distance_after = _nearest(table, rows, columns, 1, reach)
    share = distance_before / np.maximum(distance_before + distance_after, 1)
    between = value_before + (value_after - value_before) * share
    filled = np.where(distance_before == 0, value_after, np.where(distance_after == 0, value_before, between))
    result = table.copy()
    result[rows, columns] = filled.astype(np.float32)
    return np.moveaxis(result.reshape(shape), 0, axis)


def _nearest(
    table: Float32Array, rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp], direction: int, reach: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Value and distance of the nearest valid row in one direction; NaN and 0 where none lies within reach."""
    value = np.full(rows.size, np.nan)
    distance = np.zeros(rows.size, dtype=np.int64)
    for offset in range(1, min(reach, table.shape[0] - 1) + 1):
        neighbour = rows + direction * offset
        candidates = np.flatnonzero((distance == 0) & (neighbour >= 0) & (neighbour < table.shape[0]))
        found = table[neighbour[candidates], columns[candidates]]
        valid = np.isfinite(found)
        value[candidates[valid]] = found[valid]
        distance[candidates[valid]] = offset
    return value, distance
