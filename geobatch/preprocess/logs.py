"""Well logs `(well, depth)`: other depth steps, spikes, and missing values, each handled by name.

A data set of wells holds one variable per curve, float32 with NaN where it was not logged, and whatever tells of a well
as a whole without the axis `depth`. Every function takes such a data set and returns another; what has no axis `depth`
stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import xarray as xr
from pydantic import Field, model_validator

from geobatch.errors import DataError, UsageError
from geobatch.preprocess.base import Float64Array, Frozen
from geobatch.preprocess.despike import without_spikes
from geobatch.preprocess.lines import each_line
from geobatch.preprocess.missing import interpolate_gaps
from geobatch.preprocess.resample import Resample
from geobatch.preprocess.sampling import sampling_of

DEPTH = "depth"
MASK = "_valid"
"""What is added to the name of a curve for its mask channel: 1 where the curve was logged, 0 where it was not."""
Missing = Literal["fill", "interpolate", "drop", "mask"]


def resample_logs(wells: xr.Dataset, interval_m: float) -> xr.Dataset:
    """The curves at another depth step, anti-aliased as `Resample` does it; other variables by the nearest depth.

    Args:
        wells: depth in m, evenly stepped.
        interval_m: The new step.

    Raises:
        UsageError: depth is not in m, or the steps have no simple ratio.
    """
    resample = Resample(interval_m=interval_m, along=DEPTH)
    curves = {name: resample.apply(wells[name]) for name in curve_names(wells)}
    if not curves:
        return wells
    axis = next(iter(curves.values()))[DEPTH]
    others = wells.drop_vars(list(curves))
    nearest = others.reindex({DEPTH: axis.values}, method="nearest") if DEPTH in others.dims else others
    return nearest.assign_coords({DEPTH: axis}).assign(curves)[list(wells.data_vars)]


def despike_logs(
    wells: xr.Dataset, *, window_m: float, threshold: float = 5.0, curves: Sequence[str] | None = None
) -> xr.Dataset:
    """The curves with every spike replaced by the median around it, as the step `despike` does it.

    Args:
        wells: depth in m, evenly stepped.
        window_m: Length of the window in m, centred on each sample.
        threshold: Standard deviations, as the median absolute deviation tells them.
        curves: Those to treat; all of them when not given.

    Raises:
        UsageError: a curve is not there, or depth is not in m.
    """
    half = max(1, round(window_m / _interval_m(wells) / 2))
    calm = partial(without_spikes, half=half, threshold=threshold)
    return _with_curves(
        wells, curves, partial(each_line, function=calm, gaps="zero", bytes_per_sample=16 * (2 * half + 1))
    )


def handle_missing(
    wells: xr.Dataset,
    method: Missing,
    *,
    curves: Sequence[str] | None = None,
    value: float | None = None,
    max_gap_m: float | None = None,
) -> xr.Dataset:
    """The data set after its missing values are handled, by name.

    `fill`: they become `value`. `interpolate`: by the straight line between the nearest samples logged, each looked for
    no further than `max_gap_m` away, else they stay. `drop`: the result has one axis `row`, with `well` and `depth` as
    coordinates, of the depths at which all `curves` were logged. `mask`: each curve is joined by a mask channel and
    becomes 0 where missing.

    Args:
        wells: See above.
        method: One of the four.
        curves: Those that count; all of them when not given.
        value: With `fill`.
        max_gap_m: With `interpolate`.

    Raises:
        UsageError: a curve is not there, or what the method needs is not given.
    """
    names = _known(wells, curves)
    if method == "fill":
        filler = np.float32(_given(value, "value", method))
        return wells.assign({name: _changed(wells[name], wells[name].fillna(filler).values) for name in names})
    if method == "interpolate":
        reach = max(1, round(_given(max_gap_m, "max_gap_m", method) / _interval_m(wells)))
        return _with_curves(wells, names, partial(interpolate_gaps, reach=reach))
    if method == "mask":
        masks = {name + MASK: _mask(wells[name]) for name in names}
        return wells.assign({name: _changed(wells[name], wells[name].fillna(0).values) for name in names}).assign(masks)
    if method == "drop":
        rows = wells.stack(row=("well", DEPTH)).reset_index("row").transpose("row", ...)
        logged = np.logical_and.reduce([np.isfinite(rows[name].values) for name in names])
        return rows.isel(row=np.flatnonzero(logged))
    raise UsageError("unknown way with missing values", measured=str(method), limit="fill, interpolate, drop or mask")


class CurveFigures(Frozen):
    """What stands in for a curve: its median, and its least squares on other curves where they are logged.

    Attributes:
        median: Of all wells fitted.
        predictors: Curves that a missing one is computed from.
        coefficients: One per predictor, then the constant.
    """

    median: float
    predictors: tuple[str, ...] = ()
    coefficients: tuple[float, ...] = ()


class Imputation(Frozen):
    """Missing curves made up from figures of other wells, with a mask channel that says so.

    Fitted to the wells of training and applied to any: a blind well adds nothing to what it is filled with.

    Attributes:
        method: `median` of the curve over all wells, or `regression` by least squares on `predictors`; where a
            predictor is missing too, the median.
        curves: Those to complete; all of the wells fitted when not given.
        predictors: Curves to compute them from; without them all others.
        figures: Fitted, per curve.
    """

    method: Literal["median", "regression"] = "median"
    curves: tuple[str, ...] = ()
    predictors: tuple[str, ...] = ()
    figures: dict[str, CurveFigures] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _predictors_of_regression(self) -> Self:
        if self.predictors and self.method != "regression":
            raise ValueError("predictors belong to the method regression")
        return self

    def fit(self, wells: xr.Dataset) -> Self:
        """The imputation with figures of the valid samples of all wells.

        Raises:
            UsageError: a curve is not there.
            DataError: a curve has no valid sample in any well.
        """
        names = _known(wells, self.curves or None)
        figures = {name: self._fitted(wells, name) for name in names}
        return self.model_copy(update={"curves": tuple(names), "figures": figures})

    def apply(self, wells: xr.Dataset) -> xr.Dataset:
        """The wells with every curve complete, `<curve>_valid` beside it; a curve that they lack is made up whole.

        Raises:
            UsageError: `fit` comes first.
        """
        if not self.figures:
            raise UsageError("the imputation has no figures yet", remedy="Call fit() on the wells of training first.")
        shape = {axis: wells.sizes[axis] for axis in ("well", DEPTH)}
        made: dict[str, xr.DataArray] = {}
        for name, figures in self.figures.items():
            empty = xr.DataArray(np.full(tuple(shape.values()), np.nan, np.float32), dims=list(shape))
            curve = wells.get(name, empty).transpose("well", DEPTH)
            guess = np.full(curve.shape, figures.median)
            if figures.predictors and all(p in wells for p in figures.predictors):
                table = _table(wells, figures.predictors)
                computed = table @ np.array(figures.coefficients[:-1]) + figures.coefficients[-1]
                guess = np.where(np.isfinite(computed), computed, guess.ravel()).reshape(curve.shape)
            values = np.where(np.isfinite(curve.values), curve.values, guess)
            made[name], made[name + MASK] = _changed(curve, values), _mask(curve)
        return wells.assign(made)

    def _fitted(self, wells: xr.Dataset, name: str) -> CurveFigures:
        target = _table(wells, (name,))[:, 0]
        logged = np.isfinite(target)
        if not logged.any():
            raise DataError(
                f"curve {name} was logged in no well", where="imputation", remedy="Leave it out of `curves`."
            )
        median = float(np.median(target[logged]))
        predictors = self.predictors or tuple(other for other in curve_names(wells) if other != name)
        predictors = tuple(other for other in predictors if other != name)
        if self.method == "median" or not predictors:
            return CurveFigures(median=median)
        table = _table(wells, _known(wells, predictors))
        rows = logged & np.isfinite(table).all(axis=1)
        if rows.sum() <= len(predictors):
            return CurveFigures(median=median)
        design = np.column_stack([table[rows], np.ones(int(rows.sum()))])
        coefficients, *_ = np.linalg.lstsq(design, target[rows], rcond=None)
        return CurveFigures(median=median, predictors=predictors, coefficients=tuple(map(float, coefficients)))


def curve_names(wells: xr.Dataset) -> list[str]:
    """The variables that are curves: numbers with fractions over `(well, depth)`."""
    return [
        str(name)
        for name, values in wells.data_vars.items()
        if set(values.dims) == {"well", DEPTH} and values.dtype.kind == "f" and not str(name).endswith(MASK)
    ]


def _known(wells: xr.Dataset, curves: Sequence[str] | None) -> list[str]:
    known = curve_names(wells)
    unknown = [name for name in curves or () if name not in known]
    if unknown:
        raise UsageError("the wells have no such curve", measured=unknown[0], limit=f"one of {', '.join(known)}")
    return known if curves is None else list(curves)


def _interval_m(wells: xr.Dataset) -> float:
    curves = curve_names(wells)
    sampling = sampling_of(wells[curves[0]], DEPTH) if curves else None
    if sampling is None or sampling.unit.lower() not in ("m", "metre", "meter", "metres", "meters"):
        raise UsageError(
            "the depth step is not known in m",
            where="axis depth",
            measured="no depth" if sampling is None else f"steps of {sampling}",
            remedy="Give the coordinate depth units: m.",
        )
    return sampling.interval


def _with_curves(wells: xr.Dataset, curves: Sequence[str] | None, function: Any) -> xr.Dataset:
    """The wells with a function of `(block, axis)` applied to curves along depth."""
    made = {}
    for name in _known(wells, curves):
        values = wells[name].values.astype(np.float32)
        made[name] = _changed(wells[name], function(values, axis=wells[name].dims.index(DEPTH)))
    return wells.assign(made)


def _changed(curve: xr.DataArray, values: npt.NDArray[Any]) -> xr.DataArray:
    return curve.copy(deep=False, data=values.astype(np.float32))


def _mask(curve: xr.DataArray) -> xr.DataArray:
    values = np.isfinite(curve.values).astype(np.float32)
    return xr.DataArray(values, dims=curve.dims, attrs={"long_name": f"1 where {curve.name or 'the curve'} was logged"})


def _table(wells: xr.Dataset, names: Sequence[str]) -> Float64Array:
    """Rows `(well and depth, curve)` float64."""
    return np.column_stack([wells[name].transpose("well", DEPTH).values.astype(np.float64).ravel() for name in names])


def _given(value: float | None, key: str, method: str) -> float:
    if value is None:
        raise UsageError(f"missing values by {method} need {key}", where="missing values")
    return value
