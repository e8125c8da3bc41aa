"""Mean, deviation and extremes of samples by parts, in float64: what one task finds of its part, and their union."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# A piece in float64 stays in the cache.
PIECE_SAMPLES = 2**16

Samples = npt.NDArray[Any]


@dataclass(frozen=True)
class PartialMoments:
    """The moments of a part of the data, to be merged; `squares` is the sum of squared deviations from the mean."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    minimum: float = math.inf
    maximum: float = -math.inf


def partial_moments(block: Samples) -> PartialMoments:
    """The moments of the finite samples of a block: any axes, integers or floats."""
    total = PartialMoments()
    for piece in finite_pieces(block, PIECE_SAMPLES):
        values = piece.astype(np.float64)
        mean = float(values.mean())
        values -= mean
        # One pass on one thread: the sum does not depend on how many threads a library has.
        squares = float(np.einsum("i,i->", values, values))
        total = merge_moments(total, PartialMoments(values.size, mean, squares, float(piece.min()), float(piece.max())))
    return total


def merge_moments(one: PartialMoments, two: PartialMoments) -> PartialMoments:
    """The moments of two parts together: Chan, Golub & LeVeque 1979."""
    count = one.count + two.count
    if count == 0:
        return one
    difference = two.mean - one.mean
    weight = two.count / count
    return PartialMoments(
        count=count,
        mean=one.mean + difference * weight,
        squares=one.squares + two.squares + difference**2 * one.count * weight,
        minimum=min(one.minimum, two.minimum),
        maximum=max(one.maximum, two.maximum),
    )


def figures(moments: PartialMoments) -> dict[str, float | int | None]:
    """Count, mean, std, rms, min and max; None where there was no sample."""
    if not moments.count:
        return {"count": 0, **dict.fromkeys(("mean", "std", "rms", "min", "max"))}
    variance = moments.squares / moments.count
    return {
        "count": moments.count,
        "mean": moments.mean,
        "std": math.sqrt(variance),
        "rms": math.sqrt(variance + moments.mean**2),
        "min": moments.minimum,
        "max": moments.maximum,
    }


def finite_pieces(block: Samples, samples: int) -> Iterator[Samples]:
    """The finite samples of a block, at most so many at a time; none that is empty."""
    flat = np.ravel(block)
    for start in range(0, flat.size, samples):
        piece = flat[start : start + samples]
        # The extremes of a piece that holds NaN or infinity are that.
        if piece.dtype.kind == "f" and not (np.isfinite(piece.min()) and np.isfinite(piece.max())):
            piece = piece[np.isfinite(piece)]
        if piece.size:
            yield piece
