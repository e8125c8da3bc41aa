"""Steps that filter traces over their whole length: bandpass, detrend, spectral whitening.

Invalid samples are bridged by straight lines while a filter runs and are invalid again afterwards, so that a gap
reaches its neighbours as a smooth stretch and poisons nothing. A trace without a valid sample stays as it is.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, Self

import numpy as np
import xarray as xr
from pydantic import Field, model_validator

from geobatch.preprocess.base import Float64Array, Mask, StepBase, axis_number, dask_data
from geobatch.preprocess.lines import each_line, window_sums
from geobatch.preprocess.overlap import map_whole_axis
from geobatch.preprocess.sampling import SampledStep


class _Band(SampledStep):
    """A step with a band of frequencies, over a whole axis.

    Attributes:
        low_hz: Lower cut-off, none for everything below.
        high_hz: Upper cut-off, none for everything above.
    """

    low_hz: float | None = Field(default=None, gt=0)
    high_hz: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low_hz is not None and self.high_hz is not None and self.low_hz >= self.high_hz:
            raise ValueError(f"low_hz {self.low_hz:g} is not below high_hz {self.high_hz:g}")
        return self

    @property
    def whole_axes(self) -> frozenset[str]:
        """The axis of the traces."""
        return frozenset({self.along})

    def require_possible(self) -> None:
        """Raise UsageError for a cut-off that is not below Nyquist, and for an axis that is no time."""
        self.require_below_nyquist(low_hz=self.low_hz, high_hz=self.high_hz)


class Bandpass(_Band):
    """Zero-phase Butterworth filter: `scipy.signal.sosfiltfilt`, forwards and backwards over the whole trace.

    Without `high_hz` it is a high-pass, without `low_hz` a low-pass. The amplitude at a cut-off is 1/2, since the trace
    passes twice. Traces shorter than scipy's extension at the ends are extended by what they have.

    Attributes:
        order: Of one pass.
    """

    step: Literal["bandpass"] = "bandpass"
    order: int = Field(default=4, ge=1, le=16)

    @model_validator(mode="after")
    def _some_cutoff(self) -> Self:
        if self.low_hz is None and self.high_hz is None:
            raise ValueError("bandpass needs `low_hz`, `high_hz` or both")
        return self

    def apply(self, x: xr.DataArray) -> xr.DataArray:
        """`x` filtered; invalid samples stay invalid."""
        from scipy.signal import butter

        self.known_sampling(x)
        cutoffs = [f for f in (self.low_hz, self.high_hz) if f is not None]
        kind = "bandpass" if len(cutoffs) == 2 else "lowpass" if self.low_hz is None else "highpass"
        sections = butter(
            self.order, cutoffs if len(cutoffs) == 2 else cutoffs[0], kind, fs=1 / self.seconds(), output="sos"
        )
        return over_lines(x, partial(_filtered, sections=sections), self.along, self.step)


class Detrend(StepBase):
    """Subtracts from each trace its mean (`constant`) or its straight line of least squares (`linear`).

    Both are those of the valid samples, and equal `scipy.signal.detrend` where all are valid. A trace of one valid
    sample becomes 0.
    """

    step: Literal["detrend"] = "detrend"
    method: Literal["constant", "linear"] = "linear"
    along: str = "sample"

    @property
    def whole_axes(self) -> frozenset[str]:
        """The axis of the traces."""
        return frozenset({self.along})

    def apply(self, x: xr.DataArray) -> xr.DataArray:
        """`x` without the trend of its traces; invalid samples stay invalid."""
        return over_lines(x, partial(_detrended, linear=self.method == "linear"), self.along, self.step, "zero")


class Whiten(_Band):
    """Divides the spectrum of each trace by its own smoothed amplitude, within a band (Bensen et al. 2007, 2.1.2).

    The amplitude is averaged over `smooth_hz` around each frequency; 0 keeps the phase alone. The band's edges are
    cosine tapers of `taper_hz`, outside of the cut-offs. A trace of zeros stays as it is. Amplitudes are such that a
    trace whose whole spectrum is whitened has an RMS near 1.

    Attributes:
        smooth_hz: Width of the average.
        taper_hz: Width of the edges.
        water: Part of a trace's largest amplitude below which none is divided by, so that emptiness stays empty.
    """

    step: Literal["whiten"] = "whiten"
    smooth_hz: float = Field(default=2.0, ge=0)
    taper_hz: float = Field(default=2.0, ge=0)
    water: float = Field(default=1e-3, gt=0, lt=1)

    def apply(self, x: xr.DataArray) -> xr.DataArray:
        """`x` whitened; invalid samples stay invalid."""
        self.known_sampling(x)
        length, interval_s = x.sizes.get(self.along, 1), self.seconds()
        frequencies: Float64Array = np.asarray(np.fft.rfftfreq(length, interval_s), np.float64)
        half = round(0.5 * self.smooth_hz * length * interval_s)
        band = partial(_whitened, half=half, gain=self._gain(frequencies), water=self.water)
        return over_lines(x, band, self.along, self.step)

    def _gain(self, frequencies: Float64Array) -> Float64Array:
        """The taper at each frequency: 1 in the band, 0 beyond its edges."""
        gain = np.ones_like(frequencies)
        width = max(self.taper_hz, 1e-9)
        if self.low_hz is not None:
            gain *= _ramp((frequencies - self.low_hz) / width + 1)
        if self.high_hz is not None:
            gain *= _ramp((self.high_hz - frequencies) / width + 1)
        return gain


def over_lines(
    x: xr.DataArray, function: Any, along: str, step: str, gaps: Literal["bridge", "zero"] = "bridge"
) -> xr.DataArray:
    """`x` with a function of whole lines applied along an axis, by chunks that hold it whole, in its own chunks."""
    data = dask_data(x, f"the step {step}")
    axis = axis_number(x, along, f"step {step}, key along")
    return x.copy(
        deep=False, data=map_whole_axis(partial(each_line, function=function, axis=axis, gaps=gaps), data, axis)
    )


def _filtered(lines: Float64Array, valid: Mask, sections: Float64Array) -> Float64Array:
    from scipy.signal import sosfiltfilt

    # The length by which scipy extends a line by default, which must be shorter than the line.
    zeros = min((sections[:, 2] == 0).sum(), (sections[:, 5] == 0).sum())
    extension = min(3 * (2 * len(sections) + 1 - int(zeros)), lines.shape[1] - 1)
    # scipy writes to no section but asks for memory that may be written to, and what Ray hands to a task may not.
    filtered: Float64Array = sosfiltfilt(np.array(sections), lines, axis=1, padlen=extension)
    return filtered


def _detrended(lines: Float64Array, valid: Mask, linear: bool) -> Float64Array:
    count = np.maximum(valid.sum(axis=1, keepdims=True), 1)
    centred = np.where(valid, lines - lines.sum(axis=1, keepdims=True) / count, 0)
    if not linear:
        return np.asarray(centred, np.float64)
    places = np.where(valid, np.arange(lines.shape[1], dtype=np.float64), 0)
    places = np.where(valid, places - places.sum(axis=1, keepdims=True) / count, 0)
    squares = np.square(places).sum(axis=1, keepdims=True)
    slope = (places * centred).sum(axis=1, keepdims=True) / np.maximum(squares, 1e-9)
    return np.asarray(centred - slope * places, np.float64)


def _whitened(lines: Float64Array, valid: Mask, half: int, gain: Float64Array, water: float) -> Float64Array:
    from scipy.fft import irfft, rfft

    spectrum = rfft(lines, axis=1)
    amplitude = np.abs(spectrum)
    smooth = window_sums(amplitude, half) / window_sums(np.ones(amplitude.shape[1]), half)
    floor = water * smooth.max(axis=1, keepdims=True)
    divisor = np.maximum(smooth, np.where(floor > 0, floor, 1))
    white: Float64Array = irfft(spectrum / divisor * gain, n=lines.shape[1], axis=1)
    return np.asarray(white * np.sqrt(lines.shape[1]), np.float64)


def _ramp(share: Float64Array) -> Float64Array:
    """A cosine from 0 at 0 to 1 at 1, level beyond."""
    return np.asarray(0.5 - 0.5 * np.cos(np.pi * np.clip(share, 0, 1)), np.float64)
