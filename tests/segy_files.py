"""SEG-Y files for tests, written by segyio."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import segyio


def amplitudes(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Values that IBM floats hold exactly: 20 bits and a moderate exponent."""
    return (np.random.default_rng(seed).integers(-(2**19), 2**19, shape) / 256).astype(np.float32)


def write_segy(
    path: Path,
    values: np.ndarray,
    *,
    code: int = 1,
    first: tuple[int, int] = (100, 300),
    step: tuple[int, int] = (1, 1),
    order: str = "inline",
    keep: np.ndarray | None = None,
    interval: int = 4000,
    delay: int = 0,
    endian: str = "big",
    scalar: int = -10,
    extended: int = 0,
    text: str = "",
    trace_codes: np.ndarray | None = None,
    start: tuple[float, float] = (500000.0, 6000000.0),
) -> Path:
    """A 3-D post-stack file of `(inline, crossline, sample)` values on a 25 m by 12.5 m grid turned by 30 degrees."""
    inlines, crosslines, samples = values.shape
    cells = [(i, j) for i in range(inlines) for j in range(crosslines) if keep is None or keep[i, j]]
    if order == "crossline":
        cells.sort(key=lambda cell: (cell[1], cell[0]))
    elif order == "random":
        np.random.default_rng(1).shuffle(cells)
    spec = segyio.spec()
    spec.format = code
    spec.samples = delay + np.arange(samples) * interval / 1000
    spec.tracecount = len(cells)
    spec.endian = endian
    spec.ext_headers = extended
    along, across = np.cos(np.pi / 6), np.sin(np.pi / 6)
    factor = -scalar if scalar < 0 else 1 / (scalar or 1)
    with segyio.create(str(path), spec) as file:
        file.text[0] = segyio.tools.create_text_header({1: text}) if text else segyio.tools.create_text_header({})
        file.bin.update({segyio.BinField.Interval: interval, segyio.BinField.Format: code})
        if extended:
            file.bin.update({segyio.BinField.SEGYRevision: 1, segyio.BinField.ExtendedHeaders: extended})
        for trace, (i, j) in enumerate(cells):
            x = start[0] + 25 * i * along + 12.5 * j * across
            y = start[1] - 25 * i * across + 12.5 * j * along
            file.header[trace] = {
                segyio.TraceField.INLINE_3D: first[0] + i * step[0],
                segyio.TraceField.CROSSLINE_3D: first[1] + j * step[1],
                segyio.TraceField.CDP_X: round(x * factor),
                segyio.TraceField.CDP_Y: round(y * factor),
                segyio.TraceField.SourceGroupScalar: scalar,
                segyio.TraceField.DelayRecordingTime: delay,
                segyio.TraceField.TRACE_SAMPLE_COUNT: samples,
                segyio.TraceField.TRACE_SAMPLE_INTERVAL: interval,
                segyio.TraceField.TraceIdentificationCode: 1 if trace_codes is None else int(trace_codes[i, j]),
            }
            file.trace[trace] = values[i, j].astype(file.dtype)
    return path
