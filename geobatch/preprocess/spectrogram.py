"""Spectrograms: traces or waveforms as pictures of frequency over time, such as a convolutional network takes."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from geobatch.errors import UsageError
from geobatch.preprocess.base import axis_number
from geobatch.preprocess.lines import bridge
from geobatch.preprocess.sampling import RATE_KEYS, sampling_of

Scaling = Literal["magnitude", "density"]
MODES = {"magnitude": ("magnitude", "spectrum"), "density": ("psd", "density")}


def spectrogram(
    x: xr.DataArray,
    *,
    window_s: float,
    overlap: float = 0.5,
    along: str = "sample",
    window: str = "hann",
    scaling: Scaling = "magnitude",
) -> xr.DataArray:
    """The spectrogram of every line along an axis, by `scipy.signal.spectrogram`: float32, as lazy as `x` is.

    Windows lie wholly inside the line and are not detrended. Invalid samples are bridged by straight lines; a window of
    which less than half is valid is NaN at all frequencies.

    Args:
        x: any axes, evenly sampled in time along `along`; NaN where invalid. Dask chunks are joined along that axis.
        window_s: Length of the windows in s.
        overlap: Part of a window that the next one shares, 0 up to but not including 1.
        along: Name of the axis.
        window: Name of the taper, as `scipy.signal.get_window` knows it.
        scaling: `magnitude` in the unit of the data (half the amplitude of a sine), or `density` in unit²/Hz.

    Returns:
        `x` with the axis `along` at the centres of the windows, in its own unit (or in s from the start, for an array
        of a rate and no coordinate), and before it the axis `frequency` in Hz, from 0 to Nyquist.

    Raises:
        UsageError: the axis is no time, or windows do not fit the line.
    """
    axis = axis_number(x, along, "spectrogram, key along")
    sampling = sampling_of(x, along)
    interval_s = sampling.seconds if sampling else None
    if sampling is None or interval_s is None:
        raise UsageError(
            "a spectrogram needs an axis of time",
            where=f"axis {along}",
            measured="no sample interval" if sampling is None else f"steps of {sampling}",
            remedy=f"Give the array a coordinate {along} in ms or s, or the attribute {RATE_KEYS[0]}.",
        )
    length, cells = x.shape[axis], round(window_s / interval_s)
    if not 2 <= cells <= length or not 0 <= overlap < 1:
        raise UsageError(
            "windows do not fit the line",
            where=f"axis {along}",
            measured=f"{cells} samples a window, overlap {overlap:g}",
            limit=f"2 to {length} samples, overlap from 0 up to 1",
            remedy="Change window_s or overlap.",
        )
    shared = min(int(cells * overlap), cells - 1)
    starts = np.arange(0, length - cells + 1, cells - shared)
    frequency_hz = np.fft.rfftfreq(cells, interval_s)
    made = xr.apply_ufunc(
        partial(_spectra, cells=cells, shared=shared, rate_hz=1 / interval_s, window=window, scaling=scaling),
        x.drop_vars([name for name in x.coords if along in x[name].dims]),
        input_core_dims=[[along]],
        output_core_dims=[["frequency", along]],
        exclude_dims={along},
        dask="parallelized",
        output_dtypes=[np.float32],
        dask_gufunc_kwargs={
            "output_sizes": {"frequency": frequency_hz.size, along: starts.size},
            "allow_rechunk": True,
        },
        keep_attrs=True,
    )
    attributes = {"units": "Hz", "long_name": "frequency"}
    made = made.assign_coords(
        frequency=("frequency", frequency_hz, attributes), **{along: _centres(x, along, starts, cells, interval_s)}
    )
    made.attrs = {key: value for key, value in made.attrs.items() if key not in RATE_KEYS}
    order = [d for name in x.dims for d in (("frequency", name) if name == along else (name,))]
    ordered: xr.DataArray = made.transpose(*order)
    return ordered


def _spectra(
    values: npt.NDArray[Any], cells: int, shared: int, rate_hz: float, window: str, scaling: Scaling
) -> npt.NDArray[np.float32]:
    """Spectra `(…, frequency, window)` of lines `(…, sample)`."""
    from scipy.signal import spectrogram as of_scipy

    lines = np.array(values, np.float64).reshape(-1, values.shape[-1])
    valid = np.isfinite(lines)
    lines[~valid] = 0
    alive = valid.any(axis=1)
    bridged = lines[alive]
    bridge(bridged, valid[alive])
    lines[alive] = bridged
    mode, scale = MODES[scaling]
    _, _, spectra = of_scipy(lines, rate_hz, window, cells, shared, detrend=False, scaling=scale, mode=mode, axis=-1)
    inside = np.lib.stride_tricks.sliding_window_view(valid, cells, axis=1)[:, :: cells - shared]
    spectra = np.where((inside.sum(axis=2) * 2 >= cells)[:, None, :], spectra, np.nan)
    return spectra.astype(np.float32).reshape(*values.shape[:-1], *spectra.shape[1:])


def _centres(x: xr.DataArray, along: str, starts: npt.NDArray[np.int64], cells: int, interval_s: float) -> xr.DataArray:
    """The coordinate of the windows: halfway between the first sample of each and the first one after it."""
    if along not in x.coords:
        seconds = (starts + cells / 2) * interval_s
        return xr.DataArray(seconds, dims=[along], attrs={"units": "s", "long_name": "time from the start"})
    old = x[along]
    half = (old.values[-1] - old.values[0]) / (x.sizes[along] - 1) * (cells / 2)
    return xr.DataArray(old.values[starts] + half, dims=[along], attrs=old.attrs)
