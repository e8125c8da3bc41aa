"""Spectra of traces whose content is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import signal

from geobatch.spectrum import spectrum_doubts, trace_spectrum


def noise(count: int, samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, samples))


def band_limited(low_hz: float, high_hz: float, rate_hz: float = 250.0) -> np.ndarray:
    sections = signal.butter(8, [low_hz, high_hz], "bandpass", fs=rate_hz, output="sos")
    return signal.sosfiltfilt(sections, noise(40, 2000), axis=1)


@pytest.mark.parametrize(("interval", "unit", "name"), [(4.0, "ms", "Hz"), (0.004, "s", "Hz"), (4.0, "m", "cycles/km")])
@pytest.mark.parametrize("frequency", [12.0, 30.0, 90.0])
def test_a_sine_peaks_at_its_frequency(frequency: float, interval: float, unit: str, name: str) -> None:
    sine = np.sin(2 * np.pi * frequency * np.arange(1000) / 250)
    found = trace_spectrum(7 + sine + 0.01 * noise(20, 1000), interval, unit)
    assert found is not None
    figures = found.figures()
    assert figures["unit"] == name and figures["nyquist"] == pytest.approx(125)
    assert figures["dominant"] == pytest.approx(frequency, abs=figures["resolution"])
    assert figures["low"] < frequency < figures["high"] < figures["low"] + 5 * figures["resolution"]


def test_band_is_where_the_level_falls_by_20_db() -> None:
    found = trace_spectrum(band_limited(15, 50), 4.0, "ms")
    assert found is not None
    # A Butterworth filter of order 8 run both ways falls by 20 dB within some Hz of its corners.
    assert found.figures()["low"] == pytest.approx(14, abs=1.5)
    assert found.figures()["high"] == pytest.approx(53, abs=2.5)
    assert spectrum_doubts(found.figures()) == []


def test_power_is_that_of_the_signal() -> None:
    found = trace_spectrum(noise(200, 1024), 4.0, "ms")
    assert found is not None
    assert found.power.sum() * found.frequency[1] == pytest.approx(1, rel=0.02)


def test_white_noise_and_spikes_are_suspicious() -> None:
    spiky = band_limited(10, 40)
    spiky[:, ::400] += 40 * np.abs(spiky).max()
    for traces in (noise(20, 1000), spiky):
        found = trace_spectrum(traces, 4.0, "ms")
        assert found is not None
        (doubt,) = spectrum_doubts(found.figures())
        assert "above 80% of Nyquist (125 Hz): aliasing, spikes or white noise" in doubt


@pytest.mark.parametrize("line", [50.0, 60.0])
def test_mains_hum_is_told_from_the_signal_around_it(line: float) -> None:
    traces = band_limited(5, 80)
    hum = traces.std() * np.sin(2 * np.pi * line * np.arange(2000) / 250)
    clean, humming = (trace_spectrum(each, 4.0, "ms") for each in (traces, traces + hum))
    assert clean is not None and humming is not None
    assert clean.figures()["hum_hz"] == []
    assert humming.figures()["hum_hz"] == [line]
    assert spectrum_doubts(humming.figures())[-1] == f"a narrow peak at {line:g} Hz: mains hum?"


def test_hum_is_not_told_where_frequencies_are_too_coarse() -> None:
    short = np.sin(2 * np.pi * 50 * np.arange(60) / 250)[None] + 0.1 * noise(5, 60)
    found = trace_spectrum(short, 4.0, "ms")
    assert found is not None and found.figures()["hum_hz"] == []


def test_traces_with_holes_count_by_their_longest_run() -> None:
    sine = np.tile(np.sin(2 * np.pi * 40 * np.arange(900) / 250), (6, 1))
    sine[:, :300] = np.nan
    found = trace_spectrum(sine, 4.0, "ms")
    assert found is not None and found.segment_samples == 512
    assert found.figures()["dominant"] == pytest.approx(40, abs=0.5)


@pytest.mark.parametrize(
    "traces", [np.full((3, 200), np.nan), np.zeros((3, 200)), np.ones((3, 8)), np.zeros((0, 200)), np.ones((2, 100))]
)
def test_there_is_no_spectrum_of_nothing(traces: np.ndarray) -> None:
    assert trace_spectrum(traces, 4.0, "ms") is None
