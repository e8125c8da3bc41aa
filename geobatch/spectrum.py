"""Mean spectrum of traces, and what in it is suspicious: mains hum, energy where aliasing and spikes show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import signal

SEGMENT_SAMPLES = 512
FEWEST_SAMPLES = 16
BAND_DB = -20.0
HIGH_SHARE_OF_NYQUIST = 0.8
MUCH_HIGH_ENERGY = 0.05
MAINS_HZ = (50.0, 60.0)
HUM_DB = 10.0
# A hum is a line: its neighbours within these distances tell what the band around it holds without it.
HUM_WIDTH_HZ = 1.5
HUM_NEIGHBOURS_HZ = (3.0, 6.0)
BLOCK_TRACES = 256
FLOOR = 1e-30
# A unit of the vertical axis, how many of them make one of the other, and the unit of frequency.
FREQUENCY_UNITS = {"ms": (1000.0, "Hz"), "s": (1.0, "Hz"), "m": (1000.0, "cycles/km")}


@dataclass(frozen=True)
class Spectrum:
    """Mean power spectrum of traces.

    Attributes:
        frequency: From 0 to Nyquist, in `unit`.
        power: Power per unit of frequency, float64.
        unit: `Hz` or `cycles/km`.
        traces: How many segments were whole enough to count, as traces.
        segment_samples: Length of each segment.
    """

    frequency: npt.NDArray[np.float64]
    power: npt.NDArray[np.float64]
    unit: str
    traces: int
    segment_samples: int

    @property
    def level_db(self) -> npt.NDArray[np.float64]:
        """Level against the largest, which is 0 dB."""
        found: npt.NDArray[np.float64] = 10 * np.log10(np.maximum(self.power / self.power.max(), FLOOR))
        return found

    def figures(self) -> dict[str, Any]:
        """Dominant frequency, band around it down to -20 dB, share of energy near Nyquist, hum, as JSON."""
        peak = int(np.argmax(self.power[1:])) + 1
        level = self.level_db - self.level_db[peak]
        nyquist = float(self.frequency[-1])
        high = self.frequency > HIGH_SHARE_OF_NYQUIST * nyquist
        return {
            "unit": self.unit,
            "dominant": float(self.frequency[peak]),
            "low": self._crossing(level, peak, -1),
            "high": self._crossing(level, peak, 1),
            "band_db": BAND_DB,
            "nyquist": nyquist,
            "resolution": float(self.frequency[1]),
            "share_near_nyquist": float(self.power[high].sum() / self.power.sum()),
            "hum_hz": [line for line in MAINS_HZ if self.unit == "Hz" and self._hums(line)],
            "traces": self.traces,
        }

    def _crossing(self, level: npt.NDArray[np.float64], peak: int, step: int) -> float:
        """Where the level falls through the limit of the band on one side of the peak, or the end of the axis."""
        place = peak
        while 0 <= place + step < len(level):
            if level[place + step] < BAND_DB:
                part = (level[place] - BAND_DB) / (level[place] - level[place + step])
                return float(self.frequency[place] + step * part * self.frequency[1])
            place += step
        return float(self.frequency[place])

    def _hums(self, line_hz: float) -> bool:
        """True where a narrow peak stands at a mains frequency."""
        away = np.abs(self.frequency - line_hz)
        near, around = HUM_NEIGHBOURS_HZ
        beside = self.power[(away >= near) & (away <= around)]
        if self.frequency[1] > HUM_WIDTH_HZ or line_hz + near > self.frequency[-1] or beside.size < 4:
            return False
        at = self.power[away <= max(HUM_WIDTH_HZ / 2, self.frequency[1])].max()
        return bool(10 * math.log10(max(at, FLOOR) / max(float(beside.max()), FLOOR)) > HUM_DB)


def trace_spectrum(
    traces: npt.NDArray[Any], interval: float, unit: str, segment_samples: int = SEGMENT_SAMPLES
) -> Spectrum | None:
    """The mean power spectrum of traces by Welch's method, or None where no segment is whole.

    Args:
        traces: `(trace, sample)`; traces with NaN count by their longest run of finite samples.
        interval: Between samples.
        unit: Of the interval: `ms`, `s` or `m`.
        segment_samples: Longest segment; the longer, the finer and the noisier the spectrum.

    Source: Welch 1967, as `scipy.signal.welch`: Hann windows, half overlapping, each demeaned.
    """
    if unit not in FREQUENCY_UNITS or interval <= 0 or traces.shape[-1] < FEWEST_SAMPLES:
        return None
    many, name = FREQUENCY_UNITS[unit]
    length = min(segment_samples, traces.shape[-1]) // 2 * 2
    finite = np.isfinite(traces)
    whole = finite.all(axis=1)
    runs = [_longest_run(trace, good) for trace, good in zip(traces[~whole], finite[~whole], strict=True)]
    if not whole.any():
        length = min(length, max((run.size for run in runs), default=0) // 2 * 2)
    if length < FEWEST_SAMPLES:
        return None
    total, count = np.zeros(length // 2 + 1), 0
    stack = traces[whole]
    blocks = [stack[start : start + BLOCK_TRACES] for start in range(0, len(stack), BLOCK_TRACES)]
    for block in [*blocks, *(run[None] for run in runs if run.size >= length)]:
        if block.any():
            _, power = signal.welch(block.astype(np.float64), many / interval, nperseg=length, detrend="constant")
            total += power.sum(axis=0)
            count += len(block)
    if not count or not total[1:].any():
        return None
    frequency = np.arange(length // 2 + 1) * (many / interval / length)
    return Spectrum(frequency, total / count, name, count, length)


def spectrum_doubts(figures: dict[str, Any]) -> list[str]:
    """Sentences on what is suspicious in the figures of a spectrum."""
    found = []
    share = figures["share_near_nyquist"]
    if share > MUCH_HIGH_ENERGY:
        found.append(
            f"{share:.0%} of the energy lies above {HIGH_SHARE_OF_NYQUIST:.0%} of Nyquist"
            f" ({figures['nyquist']:g} {figures['unit']}): aliasing, spikes or white noise"
        )
    found += [f"a narrow peak at {line:g} Hz: mains hum?" for line in figures["hum_hz"]]
    return found


def spectrum_text(figures: dict[str, Any]) -> str:
    """The figures as one line."""
    return (
        f"dominant {figures['dominant']:.4g} {figures['unit']}, {figures['low']:.4g} to {figures['high']:.4g} at"
        f" {figures['band_db']:g} dB, Nyquist {figures['nyquist']:g}, {figures['share_near_nyquist']:.1%} of the"
        f" energy above {HIGH_SHARE_OF_NYQUIST:.0%} of it"
    )


def _longest_run(trace: npt.NDArray[Any], good: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """The longest run of finite samples."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], good, [False])).astype(np.int8)))
    starts, ends = edges[::2], edges[1::2]
    if not starts.size:
        return trace[:0]
    longest = int(np.argmax(ends - starts))
    return trace[starts[longest] : ends[longest]]
