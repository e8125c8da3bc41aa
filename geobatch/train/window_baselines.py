"""What networks of event windows are compared with: energy ratios for detection, amplitude and S − P for magnitude."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.signal import butter, sosfiltfilt
from sklearn.linear_model import LinearRegression, LogisticRegression
from torch import nn

from geobatch.models.bundle import load_bundle
from geobatch.models.phasenet import pick_phases
from geobatch.preprocess.base import Float32Array
from geobatch.preprocess.event_windows import centred
from geobatch.train.networks import AmplitudeSpec, StaLtaSpec
from geobatch.train.windows import Cut, WindowsSource

Answers = npt.NDArray[np.float32]
_TINY = 1e-12
_BAND_ORDER = 4


def window_baseline(source: WindowsSource, model: StaLtaSpec | AmplitudeSpec, classes: int, seed: int) -> Answers:
    """Answers `(class, window)`, or `(1, window)`, of the windows held out, by a baseline fitted to the others.

    Args:
        source: The windows.
        model: The baseline.
        classes: 2, or 0 of magnitudes.
        seed: Nothing here is left to chance.
    """
    cuts = [cut for record in source.training for cut in source.fixed(record)]
    if isinstance(model, StaLtaSpec):
        return _by_energy(source, model, cuts)
    return _by_amplitude(source, model, cuts)


def _by_energy(source: WindowsSource, model: StaLtaSpec, cuts: Sequence[Cut]) -> Answers:
    """Probabilities of noise and event by logistic regression on the logarithm of the largest ratio."""

    def feature(own: Sequence[Cut]) -> npt.NDArray[np.float64]:
        windows = (source.records.read(cut.record, cut.start) for cut in own)
        return np.log10([[largest_ratio(window, source.windows.rate_hz, model)] for window in windows])

    fitted = LogisticRegression().fit(feature(cuts), [int(cut.label) for cut in cuts])
    probabilities: Answers = fitted.predict_proba(feature(source.held)).T.astype(np.float32)
    return probabilities


def largest_ratio(window: Float32Array, rate_hz: float, model: StaLtaSpec) -> float:
    """The largest STA/LTA of a window `(component, sample)` (Allen 1978, doi:10.1785/BSSA0680051521).

    Energies of the recorded components in the band are added. The long average lies right before the short one, and
    is as long as there is room for, at least as long as the short one.
    """
    nyquist = 0.99 * rate_hz / 2
    band = (min(model.band_hz[0], nyquist / 2), min(model.band_hz[1], nyquist))
    filtered = sosfiltfilt(butter(_BAND_ORDER, band, "bandpass", fs=rate_hz, output="sos"), centred(window), axis=-1)
    total = np.concatenate([[0.0], np.cumsum((filtered**2).sum(axis=0))])
    short, long = max(1, round(model.short_s * rate_hz)), max(1, round(model.long_s * rate_hz))
    middle = np.arange(short, len(total) - short)
    before = np.minimum(middle, max(short, long))
    sta = (total[middle + short] - total[middle]) / short
    lta = (total[middle] - total[middle - before]) / before
    return float((sta / np.maximum(lta, _TINY * max(total[-1], _TINY))).max(initial=_TINY))


def _by_amplitude(source: WindowsSource, model: AmplitudeSpec, cuts: Sequence[Cut]) -> Answers:
    """Magnitudes by least squares on the logarithms of the largest amplitude and of S − P.

    As local magnitude has them (Richter 1935), with S − P for distance. A window whose S − P is not known counts with
    the mean logarithm of the others.
    """
    network = load_bundle(model.weights).network() if model.weights else None

    def features(own: Sequence[Cut]) -> npt.NDArray[np.float64]:
        return np.array([_amplitude_and_time(source, cut, network) for cut in own])

    known, asked = features(cuts), features(source.held)
    mean = np.nanmean(known[:, 1]) if np.isfinite(known[:, 1]).any() else 0.0
    for table in (known, asked):
        table[np.isnan(table[:, 1]), 1] = mean
    fitted = LinearRegression().fit(known, [cut.label for cut in cuts])
    answers: Answers = fitted.predict(asked)[None].astype(np.float32)
    return answers


def _amplitude_and_time(source: WindowsSource, cut: Cut, network: nn.Module | None) -> tuple[float, float]:
    """Decimal logarithms of the largest amplitude, and of S − P in s, NaN where it is not known."""
    window = source.records.read(cut.record, cut.start)
    amplitude = math.log10(max(float(np.abs(centred(window)).max()), _TINY))
    if network is None:
        gap_s = source.records.s_minus_p_s(cut.record)
    else:
        order = [source.windows.components.index(code) for code in "ENZ"]
        p_s, s_s = pick_phases(network, window[order], source.windows.rate_hz)
        gap_s = s_s - p_s
    return amplitude, math.log10(gap_s) if gap_s > 0 else math.nan
