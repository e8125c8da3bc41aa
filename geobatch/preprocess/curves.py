"""Logs as a network takes them: chosen curves, complete, on one scale, with channels that say what was made up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import xarray as xr
from pydantic import Field, model_validator

from geobatch.errors import DataError, UsageError
from geobatch.preprocess.base import Frozen
from geobatch.preprocess.logs import DEPTH, MASK, Imputation, curve_names

_SMALLEST = 1e-6
"""Of deviations and of logarithms' arguments, in the curve's unit."""


class Curves(Frozen):
    """Curves to a table of channels, with figures fitted to the wells of training.

    Attributes:
        curves: Their variables, in the order of the channels.
        logarithm: Those of which the decimal logarithm is taken, such as resistivities; none of 0 or less.
        missing: `median` and `regression` make values up (`Imputation`), `zero` puts the mean there; each joins a mask
            channel to every curve that was missing anywhere in training. `drop` leaves out every depth at which a
            curve is missing.
        mean: Fitted, per curve, after the logarithm.
        deviation: Fitted, likewise.
        masked: Fitted: the curves with a mask channel.
        imputation: Fitted, with `median` and `regression`.
    """

    curves: tuple[str, ...] = Field(min_length=1)
    logarithm: tuple[str, ...] = ()
    missing: Literal["median", "regression", "zero", "drop"] = "median"
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    masked: tuple[str, ...] = ()
    imputation: Imputation | None = None

    @model_validator(mode="after")
    def _logarithms_of_curves(self) -> Self:
        if unknown := [name for name in self.logarithm if name not in self.curves]:
            raise ValueError(f"logarithm: {unknown[0]} is none of the curves")
        if len(set(self.curves)) < len(self.curves):
            raise ValueError("curves: one is named twice")
        return self

    @property
    def channels(self) -> int:
        """Channels of the table."""
        return len(self.curves) + len(self.masked)

    @property
    def stand_ins(self) -> tuple[float, ...]:
        """What each channel holds where nothing at all is known: of a curve its median, or mean; of a mask 0."""
        medians = self.imputation.figures if self.imputation else {}
        figures = zip(self.curves, self.mean, self.deviation, strict=True)
        own = [(medians[n].median - mean) / deviation if n in medians else 0.0 for n, mean, deviation in figures]
        return (*own, *(0.0 for _ in self.masked))

    def fit(self, wells: xr.Dataset) -> Self:
        """The curves with figures of all valid samples of these wells.

        Args:
            wells: Those of training alone, see `preprocess.logs`.

        Raises:
            UsageError: a curve is not there.
            DataError: a curve has no valid sample.
        """
        table = self._scaled_alike(wells)
        values = {name: table[name].values[np.isfinite(table[name].values)].astype(np.float64) for name in self.curves}
        for name, found in values.items():
            if not found.size:
                raise DataError(f"curve {name} was logged in no well of training", remedy="Leave it out of `curves`.")
        figures: dict[str, object] = {
            "mean": tuple(float(found.mean()) for found in values.values()),
            "deviation": tuple(max(float(found.std()), _SMALLEST) for found in values.values()),
        }
        if self.missing != "drop":
            inside = inside_wells(table, self.curves)
            figures["masked"] = tuple(n for n in self.curves if np.isnan(table[n].values[inside]).any())
        if self.missing in ("median", "regression"):
            method: Literal["median", "regression"] = "median" if self.missing == "median" else "regression"
            figures["imputation"] = Imputation(method=method, curves=self.curves).fit(table)
        return self.model_copy(update=figures)

    def apply(self, wells: xr.Dataset) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Channels `(well, channel, depth)` float32 without NaN, and which depths count `(well, depth)` bool.

        A channel is its curve less the mean over the deviation; masks are 1 where the curve was logged. Depths count
        where any of the curves was logged, with `drop` where all were.

        Raises:
            UsageError: `fit` comes first, or a curve is not there.
        """
        if not self.mean:
            raise UsageError("the curves have no figures yet", remedy="Call fit() on the wells of training first.")
        table = self._scaled_alike(wells)
        logged = {name: np.isfinite(table[name].values) for name in self.curves}
        every = np.logical_and.reduce(list(logged.values()))
        counts = every if self.missing == "drop" else inside_wells(table, self.curves)
        complete = self.imputation.apply(table) if self.imputation else table
        channels = [
            np.nan_to_num((complete[name].values - np.float32(mean)) / np.float32(deviation))
            for name, mean, deviation in zip(self.curves, self.mean, self.deviation, strict=True)
        ]
        channels += [logged[name].astype(np.float32) for name in self.masked]
        return np.where(counts[:, None], np.stack(channels, axis=1), 0).astype(np.float32), counts

    def _scaled_alike(self, wells: xr.Dataset) -> xr.Dataset:
        """The chosen curves alone, float32, with logarithms taken."""
        known = curve_names(wells)
        if unknown := [name for name in self.curves if name not in known]:
            raise UsageError("the wells have no such curve", measured=unknown[0], limit=f"of {', '.join(known)}")
        made = {}
        for name in self.curves:
            curve = wells[name].transpose("well", DEPTH).astype(np.float32)
            if name in self.logarithm:
                values = curve.values
                curve = curve.copy(data=np.log10(values, where=values > _SMALLEST, out=np.full_like(values, np.nan)))
            made[name] = curve
        return xr.Dataset(made)


def inside_wells(wells: xr.Dataset, curves: Sequence[str]) -> npt.NDArray[np.bool_]:
    """`(well, depth)`: true where any of the curves was logged."""
    inside: npt.NDArray[np.bool_] = np.logical_or.reduce(
        [np.isfinite(wells[name].transpose("well", DEPTH).values) for name in curves]
    )
    return inside


__all__ = ["MASK", "Curves", "inside_wells"]
