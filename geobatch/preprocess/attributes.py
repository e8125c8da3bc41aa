"""Instantaneous attributes of traces by the analytic signal (Taner, Koehler & Sheriff 1979; `scipy.signal.hilbert`).

The transform takes a trace as one period of a signal, so it runs over whole traces. Invalid samples are bridged by
straight lines meanwhile and are invalid again afterwards.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from geobatch.preprocess.base import Float64Array, Mask, StepBase
from geobatch.preprocess.filters import over_lines
from geobatch.preprocess.sampling import SampledStep


class Envelope(StepBase):
    """The instantaneous amplitude of each trace, in the unit of the data: the modulus of the analytic signal."""

    makes: ClassVar[tuple[str, str] | None] = ("envelope", "")
    step: Literal["envelope"] = "envelope"
    along: str = "sample"

    @property
    def whole_axes(self) -> frozenset[str]:
        """The axis of the traces."""
        return frozenset({self.along})

    def apply(self, x: xr.DataArray) -> xr.DataArray:
        """The envelope of `x`; invalid samples stay invalid."""
        return over_lines(x, _envelope, self.along, self.step)


class Phase(StepBase):
    """The instantaneous phase of each trace, in radians from -pi to pi: 0 at a peak, pi at a trough."""

    makes: ClassVar[tuple[str, str] | None] = ("instantaneous phase", "rad")
    step: Literal["phase"] = "phase"
    along: str = "sample"

    @property
    def whole_axes(self) -> frozenset[str]:
        """The axis of the traces."""
        return frozenset({self.along})

    def apply(self, x: xr.DataArray) -> xr.DataArray:
        """The phase of `x`; invalid samples stay invalid."""
        return over_lines(x, _phase, self.along, self.step)


class Frequency(SampledStep):
    """The instantaneous frequency of each trace in Hz: how fast its phase turns.

    The mean of the turns from the sample before and to the sample after, which is `numpy.gradient` of the unwrapped
    phase; at the ends of a trace the one that there is. It lies between minus and plus the Nyquist frequency, and
    says little where the envelope is near 0.
    """

    makes: ClassVar[tuple[str, str] | None] = ("instantaneous frequency", "Hz")
    step: Literal["frequency"] = "frequency"

    @property
    def whole_axes(self) -> frozenset[str]:
        """The axis of the traces."""
        return frozenset({self.along})

    def require_possible(self) -> None:
        """Raise UsageError on an axis that is no time."""
        self.seconds()

    def apply(self, x: xr.DataArray) -> xr.DataArray:
        """The frequency of `x`; invalid samples stay invalid."""
        self.known_sampling(x)
        return over_lines(x, partial(_frequency, rate_hz=1 / self.seconds()), self.along, self.step)


def _analytic(lines: Float64Array) -> npt.NDArray[np.complex128]:
    from scipy.signal import hilbert

    signal: npt.NDArray[np.complex128] = hilbert(lines, axis=1)
    return signal


def _envelope(lines: Float64Array, valid: Mask) -> Float64Array:
    return np.asarray(np.abs(_analytic(lines)), np.float64)


def _phase(lines: Float64Array, valid: Mask) -> Float64Array:
    # Adding zero turns -0.0 into 0.0, whose phase is 0 and not pi.
    return np.angle(_analytic(lines) + 0.0)


def _frequency(lines: Float64Array, valid: Mask, rate_hz: float) -> Float64Array:
    signal = _analytic(lines)
    turns = np.angle(signal[:, 1:] * signal[:, :-1].conj() + 0.0)
    if not turns.size:
        return np.zeros_like(lines)
    before, after = turns[:, [0, *range(turns.shape[1])]], turns[:, [*range(turns.shape[1]), -1]]
    return (before + after) * (rate_hz / (4 * np.pi))
