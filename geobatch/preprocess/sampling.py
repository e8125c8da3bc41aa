"""How densely an axis is sampled, in physical units: what a cut-off in Hz or a window in ms means in cells."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt
import xarray as xr
from pydantic import Field

from geobatch.errors import DataError, UsageError
from geobatch.preprocess.base import Frozen, StepBase, not_fitted

SECONDS = {"s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0, "ms": 1e-3, "msec": 1e-3, "us": 1e-6, "ns": 1e-9}
IMPLIED = {"sample": "ms", "time": "s"}
"""The unit of an axis whose coordinate names none."""
RATE_KEYS = ("sampling_rate_hz", "sampling_rate")
UNEVEN = 1e-3
"""The most by which a step of an even axis differs from the others, as part of a step."""


class Sampling(Frozen):
    """The step of an axis and its unit, such as 4 ms or 20 m."""

    interval: float = Field(gt=0)
    unit: str

    @property
    def seconds(self) -> float | None:
        """The step in seconds; None on an axis that is no time."""
        factor = SECONDS.get(self.unit.lower())
        return None if factor is None else self.interval * factor

    def __str__(self) -> str:
        return f"{self.interval:g} {self.unit}".strip()


def sampling_of(x: xr.DataArray, axis: str) -> Sampling | None:
    """The sampling of an axis by its coordinate, or by the attribute `sampling_rate_hz`; None where neither tells.

    Times are read as such whatever their type. A coordinate without `units` is in ms on the axis `sample` and in s
    on the axis `time`.

    Raises:
        DataError: the coordinate is not evenly spaced.
    """
    if axis in x.coords and x.sizes[axis] > 1 and x[axis].dtype.kind in "iufmM":
        numbers, unit = x[axis].values, str(x[axis].attrs.get("units", IMPLIED.get(axis, "")))
        if numbers.dtype.kind in "mM":
            numbers, unit = (numbers - numbers[0]) / np.timedelta64(1, "s"), "s"
        return Sampling(interval=_interval(np.asarray(numbers, np.float64), axis, x), unit=unit)
    rate = next((x.attrs[key] for key in RATE_KEYS if key in x.attrs), None)
    if rate is not None and axis in IMPLIED:
        return Sampling(interval=1 / float(rate), unit="s")
    return None


class SampledStep(StepBase):
    """A step along one axis with a parameter in physical units.

    Attributes:
        along: Name of the axis.
        sampling: Its interval. Fitted from the coordinate, or from the attribute `sampling_rate_hz` of a survey that
            has none; given here, it serves arrays that have neither.
    """

    along: str = "sample"
    sampling: Sampling | None = None

    @property
    def fitted(self) -> bool:
        """True when the sample interval is known."""
        return self.sampling is not None

    def sampled(self, x: xr.DataArray) -> Self:
        """The step with the sample interval of `x`.

        Raises:
            UsageError: the interval is nowhere to be found, or the parameters make no sense with it.
        """
        found = sampling_of(x, self.along) or self.sampling
        if found is None:
            raise UsageError(
                f"the sample interval along {self.along} is unknown",
                where=f"step {self._name}, {x.name or 'array'} {x.shape}",
                limit="a coordinate of two values or more, or the attribute sampling_rate_hz",
                remedy=f"Give the array a coordinate {self.along}, or the step sampling: {{interval: …, unit: ms}}.",
            )
        step = self.model_copy(update={"sampling": found})
        step.require_possible()
        return step

    def require_possible(self) -> None:
        """Raise UsageError when the parameters make no sense with the sample interval."""

    def known_sampling(self, x: xr.DataArray) -> Sampling:
        """The fitted sampling, after a look that `x` has no other.

        Raises:
            UsageError: the step is not fitted, or was fitted to another interval.
        """
        if self.sampling is None:
            raise not_fitted(self._name)
        found = sampling_of(x, self.along)
        if found and (
            abs(found.interval - self.sampling.interval) > UNEVEN * self.sampling.interval
            or found.unit != self.sampling.unit
        ):
            raise UsageError(
                "the step was fitted to another sample interval",
                where=f"step {self._name}, axis {self.along}",
                measured=str(found),
                limit=str(self.sampling),
                remedy="Call sampled() or fit() of the chain on this survey.",
            )
        return self.sampling

    def seconds(self) -> float:
        """The sample interval in s.

        Raises:
            UsageError: the step is not fitted, or the axis is no time.
        """
        if self.sampling is None:
            raise not_fitted(self._name)
        seconds = self.sampling.seconds
        if seconds is None:
            raise UsageError(
                f"the step {self._name} is told in Hz or ms, and its axis is no time",
                where=f"step {self._name}, axis {self.along}",
                measured=f"steps of {self.sampling}",
                limit=f"a unit of time: {', '.join(SECONDS)}",
                remedy="Take a survey in time, give a window in cells, or leave the step out.",
            )
        return seconds

    def require_below_nyquist(self, **cutoffs_hz: float | None) -> None:
        """Raise UsageError when a cut-off does not lie below half the sampling rate."""
        nyquist_hz = 0.5 / self.seconds()
        for key, value in cutoffs_hz.items():
            if value is not None and value >= nyquist_hz:
                raise UsageError(
                    f"{key} does not lie below the Nyquist frequency",
                    where=f"step {self._name}, axis {self.along}",
                    measured=f"{value:g} Hz",
                    limit=f"below {nyquist_hz:g} Hz, half the rate of samples {self.sampling} apart",
                    remedy=f"Lower {key}, or leave it out.",
                )

    @property
    def _name(self) -> str:
        return str(getattr(self, "step", type(self).__name__.lower()))


def _interval(numbers: npt.NDArray[Any], axis: str, x: xr.DataArray) -> float:
    """The even step of an axis, whichever way it runs."""
    interval = (numbers[-1] - numbers[0]) / (numbers.size - 1)
    steps = np.diff(numbers)
    if not np.isfinite(interval) or interval == 0 or np.abs(steps - interval).max() > UNEVEN * abs(interval):
        raise DataError(
            f"the axis {axis} is not evenly spaced",
            where=f"{x.name or 'array'} {x.shape}",
            measured=f"steps from {steps.min():g} to {steps.max():g}",
            limit=f"one step to {UNEVEN:g} of itself",
            remedy="Resample the data to even steps first.",
        )
    return float(abs(interval))
