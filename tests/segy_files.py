"""SEG-Y files for tests, written by segyio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


KINDS = {2: "i4", 3: "i2", 5: "f4", 6: "f8", 8: "i1", 9: "i8", 10: "u4", 11: "u2", 12: "u8", 16: "u1"}
SHORT = {29: "i2", 71: "i2", 89: "i2", 109: "i2", 115: "u2", 117: "u2", 203: "i2", 215: "i2"}


def raw_segy(
    path: Path,
    traces: Sequence[np.ndarray],
    *,
    code: int = 5,
    order: str = ">",
    fields: Mapping[int, Sequence[int] | int] | None = None,
    binary: Mapping[int, tuple[int | float, str]] | None = None,
    before: bytes = b"",
    after: bytes = b"",
    extra: int = 0,
    interval: int = 4000,
) -> Path:
    """A file of traces of any length and format, written byte by byte.

    `fields` are trace header values by their first byte, one for all or one each; `binary` file header values with
    their type; `before` stands between file header and traces, `after` behind them, `extra` are headers of 240 bytes
    that follow the first of each trace.
    """
    head = bytearray(b"C 1 raw".ljust(3200) + bytes(400))

    def put(target: bytearray, byte: int, kind: str, value: float) -> None:
        raw = np.array(value).astype(np.dtype(order + kind)).tobytes()
        target[byte - 1 : byte - 1 + len(raw)] = raw

    standard = {3217: (interval, "u2"), 3221: (len(traces[0]), "u2"), 3225: (code, "u2")}
    for byte, (value, kind) in {**standard, **(binary or {})}.items():
        put(head, byte, kind, value)
    body = bytearray()
    for number, values in enumerate(traces):
        header = bytearray(240)
        for byte, value in {29: 1, 115: len(values), 117: interval, **(fields or {})}.items():
            put(header, byte, SHORT.get(byte, "i4"), value[number] if isinstance(value, Sequence) else value)
        words = np.asarray(values).astype(np.dtype(order + KINDS[code]))
        body += header + bytes(240 * extra) + words.tobytes()
    path.write_bytes(bytes(head) + before + bytes(body) + after)
    return path


def random_traces(*counts: int, seed: int = 0) -> list[np.ndarray]:
    """Traces of the given numbers of samples, whole numbers that every sample format holds."""
    random = np.random.default_rng(seed)
    return [random.integers(1, 120, count).astype(np.float64) for count in counts]
