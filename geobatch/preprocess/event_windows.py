"""Windows of ground motion as a network takes them: chosen components, on one scale, as waveforms or as pictures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import xarray as xr
from pydantic import Field, model_validator

from geobatch.errors import DataError, UsageError
from geobatch.preprocess.base import Float32Array, Frozen
from geobatch.preprocess.spectrogram import spectrogram

FLOOR = -4.0
"""The least that a logarithm becomes, in deviations below its mean: silence has none."""


class Picture(Frozen):
    """How a spectrogram becomes a picture.

    Attributes:
        window_s: Length of its sliding windows in s; see `preprocess.spectrogram`.
        overlap: Part of a window that the next one shares.
        size: Frequencies and times of the picture, to which it is interpolated linearly.
    """

    window_s: float = Field(default=1.28, gt=0)
    overlap: float = Field(default=0.9, ge=0, lt=1)
    size: tuple[int, int] = (224, 224)

    @model_validator(mode="after")
    def _some_cells(self) -> Self:
        if min(self.size) < 1:
            raise ValueError(f"size {self.size}: at least 1 of each")
        return self


class WindowInput(Frozen):
    """Windows `(component, sample)` to the channels of a network.

    Components lose their means. With `amplitude: normalised` a window is then divided by its root mean square over all
    components, and a picture's logarithms by their own mean and deviation: a factor on the window changes nothing. With
    `amplitude: kept` nothing is divided by figures of the window: the decimal logarithms of a picture are put on one
    fixed scale, and a waveform, normalised, is joined by a channel with the logarithm of what it was divided by.

    Attributes:
        form: `waveform`, or `spectrogram`: a picture per component of the logarithms of its amplitudes.
        window_s: Length of a window in s.
        components: In the order of the channels.
        amplitude: See above; given by what is asked.
        missing: Of a component without samples: `zero` puts its channel at 0, the mean; `mask` does so and joins a
            channel per component that is 1 where it is there; `drop` leaves out the records that lack one.
        picture: Of `spectrogram`.
        sampling_rate_hz: Of the windows; fitted where it is not given, and others are resampled where it is.
        mean: Fitted, with `kept`: of the logarithms over the windows of training.
        deviation: Fitted, likewise.
    """

    form: Literal["waveform", "spectrogram"] = "waveform"
    window_s: float = Field(gt=0)
    components: tuple[str, ...] = Field(default=("E", "N", "Z"), min_length=1)
    amplitude: Literal["normalised", "kept"] | None = None
    missing: Literal["zero", "mask", "drop"] = "zero"
    picture: Picture = Picture()
    sampling_rate_hz: float | None = Field(default=None, gt=0)
    mean: float | None = None
    deviation: float | None = None

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes of a network's input."""
        return ("time",) if self.form == "waveform" else ("frequency", "time")

    @property
    def samples(self) -> int:
        """Of a window.

        Raises:
            UsageError: the sampling rate is not known yet.
        """
        return round(self.window_s * self.rate_hz)

    @property
    def rate_hz(self) -> float:
        """Samples per second.

        Raises:
            UsageError: it is not known yet.
        """
        if self.sampling_rate_hz is None:
            raise UsageError("the windows have no sampling rate yet", remedy="Give sampling_rate_hz.")
        return self.sampling_rate_hz

    @property
    def channels(self) -> int:
        """Of a network's input."""
        own = len(self.components) * (2 if self.missing == "mask" else 1)
        return own + (self.form == "waveform" and self.amplitude == "kept")

    def fit(self, windows: Iterable[Float32Array]) -> Self:
        """The input with its fixed scale, of windows `(component, sample)` of training; itself when it needs none.

        Raises:
            DataError: the windows hold no motion.
        """
        if self.amplitude != "kept":
            return self
        logarithms = np.concatenate([_positive_logarithms(self._amplitudes(window)) for window in windows])
        if not logarithms.size:
            raise DataError("the windows of training hold no motion", where="data.input")
        return self.model_copy(
            update={"mean": float(logarithms.mean()), "deviation": max(float(logarithms.std()), 1e-6)}
        )

    def apply(self, window: Float32Array) -> Float32Array:
        """Channels `(channel, sample)`, or `(channel, frequency, time)`, float32 without NaN.

        Args:
            window: `(component, sample)` in the order of `components`, NaN where nothing was recorded.

        Raises:
            UsageError: `fit` comes first.
        """
        if self.amplitude == "kept" and (self.mean is None or self.deviation is None):
            raise UsageError("the windows have no scale yet", remedy="Call fit() on those of training first.")
        there = np.asarray(np.isfinite(window).any(axis=1))
        made = self._pictured(window, there) if self.form == "spectrogram" else self._waveform(window)
        if self.missing == "mask":
            made = np.concatenate([made, np.broadcast_to(_columns(there, made), made[: len(there)].shape)])
        return np.ascontiguousarray(made, np.float32)

    def _waveform(self, window: Float32Array) -> Float32Array:
        level, moved = _level(window), centred(window)
        made: Float32Array = moved / np.float32(level or 1.0)
        if self.amplitude == "kept":
            told = self._scaled(np.log10(level)) if level else FLOOR
            made = np.concatenate([made, np.full_like(made[:1], told)])
        return made

    def _pictured(self, window: Float32Array, there: npt.NDArray[np.bool_]) -> Float32Array:
        import torch

        amplitudes = self._amplitudes(window)
        with np.errstate(divide="ignore"):
            logarithms = np.log10(amplitudes)
        if self.amplitude == "kept":
            scaled = self._scaled(logarithms)
        else:
            found = _positive_logarithms(amplitudes[there])
            scaled = (logarithms - (found.mean() if found.size else 0)) / max(found.std() if found.size else 1, 1e-6)
        scaled = np.where(_columns(there, scaled), np.maximum(scaled, FLOOR), 0).astype(np.float32)
        picture = torch.from_numpy(scaled)[None]
        sized = torch.nn.functional.interpolate(picture, size=self.picture.size, mode="bilinear")
        made: Float32Array = sized[0].numpy()
        return made

    def _amplitudes(self, window: Float32Array) -> npt.NDArray[np.float64]:
        """What logarithms are taken of: of a picture all its cells, of a waveform its level."""
        level = _level(window)
        if self.form == "waveform":
            return np.array([level])
        moved = centred(window)
        if self.amplitude == "normalised":
            moved = moved / np.float32(level or 1.0)
        lines = xr.DataArray(moved, dims=("component", "sample"), attrs={"sampling_rate_hz": self.rate_hz})
        made = spectrogram(lines, window_s=self.picture.window_s, overlap=self.picture.overlap)
        amplitudes: npt.NDArray[np.float64] = made.values.astype(np.float64)
        return amplitudes

    def _scaled(self, logarithms: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        assert self.mean is not None and self.deviation is not None
        return (logarithms - self.mean) / self.deviation


def centred(window: Float32Array) -> Float32Array:
    """The window without its components' means; 0 where nothing was recorded."""
    there = np.isfinite(window)
    mean = np.where(there, window, 0).sum(axis=1, dtype=np.float64) / np.maximum(there.sum(axis=1), 1)
    return np.where(there, window - mean[:, None], 0).astype(np.float32)


def _level(window: Float32Array) -> float:
    """Root mean square of the recorded samples about their components' means."""
    recorded = int(np.isfinite(window).sum())
    return float(np.sqrt((centred(window).astype(np.float64) ** 2).sum() / max(recorded, 1)))


def _positive_logarithms(amplitudes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    positive: npt.NDArray[np.float64] = np.log10(amplitudes[amplitudes > 0])
    return positive


def _columns(there: npt.NDArray[np.bool_], like: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """One value per component, ready to go beside `like`."""
    return there.reshape(-1, *(1,) * (like.ndim - 1))
