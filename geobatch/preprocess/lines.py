"""Functions of whole lines, or of windows along them, in bounded pieces and without harm by invalid samples.

A line is all samples of a block along one axis, such as a trace. What a line becomes depends on that line alone, bit
for bit, so that a block may be cut between lines at will.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from geobatch.preprocess.base import Float32Array, Float64Array, Mask

PIECE_SAMPLES = 2**16
"""Samples computed at once in float64: temporary arrays then fit the cache, and count for nothing beside a block."""
LANES = 16
"""Lines are computed by multiples of this: FFTs take several at once by vector instructions and the rest by others,
which may round in another way; all lines are to be treated alike."""

LineFunction = Callable[[Float64Array, Mask], Float64Array]
"""Lines `(line, sample)` and where they are valid; what comes out is masked again."""


def each_line(
    block: Float32Array,
    function: LineFunction,
    axis: int,
    gaps: Literal["bridge", "zero"] = "bridge",
    bytes_per_sample: int = 8,
) -> Float32Array:
    """The block with `function` applied to its lines along `axis`; invalid samples stay invalid and reach no other.

    Args:
        block: float32, NaN where invalid.
        function: takes lines `(line, sample)` float64 without NaN, at least one sample of each valid, and the mask of
            valid samples; returns as many.
        axis: number of the axis.
        gaps: what stands for invalid samples meanwhile: `bridge` the straight line between the nearest valid
            neighbours, whose value goes on to the ends; `zero` 0.
        bytes_per_sample: of the largest temporary array of `function`.
    """
    moved = np.moveaxis(block, axis, -1)
    table = moved.reshape(-1, moved.shape[-1])
    result = np.full(table.shape, np.nan, np.float32)
    rows = max(1, PIECE_SAMPLES * 8 // bytes_per_sample // max(table.shape[1], 1) // LANES) * LANES
    piece = table
    for start in range(0, len(table), rows):
        piece = table[start : start + rows]
        valid = np.isfinite(piece)
        alive = np.flatnonzero(valid.any(axis=1))
        if alive.size:
            valid = valid[alive]
            values = np.zeros((-(-alive.size // LANES) * LANES, table.shape[1]))
            values[: alive.size] = np.where(valid, piece[alive], 0)
            if gaps == "bridge":
                bridge(values[: alive.size], valid)
            everywhere = np.ones(values.shape, bool)
            everywhere[: alive.size] = valid
            found = function(values, everywhere)[: alive.size]
            result[start + alive] = np.where(valid, found, np.nan)
    # A copy along any axis but the last; it is to go before the next one is made.
    del table, piece
    return np.ascontiguousarray(np.moveaxis(result.reshape(moved.shape), -1, axis))


def bridge(lines: Float64Array, valid: Mask) -> None:
    """Put, in place, the straight line between the nearest valid neighbours where `lines` are invalid.

    Before the first valid sample of a line and after the last its value goes on. At least one sample of each is valid.
    """
    broken = np.flatnonzero(~valid.all(axis=1))
    if not broken.size:
        return
    values, known = lines[broken], valid[broken]
    length = values.shape[1]
    places = np.arange(length)
    before = np.maximum.accumulate(np.where(known, places, -1), axis=1)
    after = np.minimum.accumulate(np.where(known, places, length)[:, ::-1], axis=1)[:, ::-1]
    low = np.where(before < 0, after, before)
    high = np.where(after == length, before, after)
    start = np.take_along_axis(values, low, axis=1)
    rise = np.take_along_axis(values, high, axis=1) - start
    share = (places - low) / np.maximum(high - low, 1)
    lines[broken] = np.where(known, values, start + rise * np.where(high > low, share, 0))


def window_sums(lines: Float64Array, half: int) -> Float64Array:
    """Per sample the sum over itself and up to `half` neighbours on both sides, cut off at the ends of the line.

    Sums are built from sums of half as many, so that they are made in the same order at every sample: a block gives
    the bits of the whole, nothing is subtracted, and the cost grows with the logarithm of the window.
    """
    length, width = lines.shape[-1], 2 * half + 1
    padded = np.zeros((*lines.shape[:-1], length + 2 * half), lines.dtype)
    padded[..., half : half + length] = lines
    total, done = np.zeros(lines.shape, lines.dtype), 0
    # `padded` holds the sum of `size` samples that begin at each place.
    size = 1
    while True:
        if width & size:
            total = total + padded[..., done : done + length]
            done += size
        if done == width:
            return total
        padded = padded[..., :-size] + padded[..., size:]
        size *= 2
