"""MiniSEED files for tests, written by obspy."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import obspy

START = "2024-03-01T00:00:00"


def counts(length: int, seed: int = 0) -> np.ndarray:
    """Noise as a digitiser gives it."""
    return np.cumsum(np.random.default_rng(seed).integers(-40, 41, length)).astype(np.int32)


def trace(
    data: np.ndarray, start: str | float = 0.0, *, channel: str = "HHZ", rate: float = 100.0, station: str = "STA"
) -> obspy.Trace:
    """A trace of GB.STA.00; `start` in seconds after START, or a time."""
    begin = obspy.UTCDateTime(START) + start if isinstance(start, float | int) else obspy.UTCDateTime(start)
    header = {"network": "GB", "station": station, "location": "00", "channel": channel}
    return obspy.Trace(data, {**header, "sampling_rate": rate, "starttime": begin})


def records(*traces: obspy.Trace, **options: Any) -> bytes:
    """The bytes of a file."""
    sink = io.BytesIO()
    obspy.Stream(traces).write(sink, format="MSEED", **{"reclen": 512, **options})
    return sink.getvalue()


def write(path: Path, *traces: obspy.Trace, **options: Any) -> Path:
    """A file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(records(*traces, **options))
    return path
