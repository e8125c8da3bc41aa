"""Random numbers as a function of position: the same place and seed give the same number, in any order.

Every function works element by element on integers, so that its result does not depend on how a volume is cut.
"""

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

Keys = NDArray[np.uint64]
Numbers = NDArray[np.float32]
Coordinates = NDArray[np.float64]

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX_A: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_B: Final = np.uint64(0x94D049BB133111EB)


def hash_keys(*parts: ArrayLike) -> Keys:
    """Return uint64 hashes of integer coordinates, broadcast against each other.

    Each part is folded in with one round of the SplitMix64 finaliser (Steele et al. 2014,
    doi:10.1145/2660193.2660195).

    Args:
        parts: integers or integer arrays, negative values allowed: seed, stream, then coordinates.
    """
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            state = _finalise((state ^ np.asarray(part).astype(np.int64).view(np.uint64)) + _GOLDEN)
    return state


def uniform(*parts: ArrayLike) -> Numbers:
    """Return float32 numbers uniform in [0, 1), one per position."""
    return (hash_keys(*parts) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def between(low: float, high: float, *parts: ArrayLike) -> NDArray[np.float64]:
    """Return float64 numbers uniform in [low, high), one per position."""
    return low + (high - low) * uniform(*parts).astype(np.float64)


def normal(*parts: ArrayLike) -> Numbers:
    """Return float32 numbers of zero mean, unit variance and nearly normal distribution, one per position.

    The sum of four uniform numbers of 16 bits each (Irwin-Hall): only additions, hence the same bits everywhere.
    """
    keys = hash_keys(*parts)
    total = np.zeros(keys.shape, np.float32)
    for shift in (0, 16, 32, 48):
        total += ((keys >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.float32)
    # A uniform 16-bit integer has mean 32767.5 and variance (65536**2 - 1) / 12.
    return (total - np.float32(4 * 32767.5)) * np.float32(1.0 / np.sqrt(4 * (65536.0**2 - 1) / 12))


def value_noise(inline: Coordinates, crossline: Coordinates, sample: Coordinates, *stream: int) -> Numbers:
    """Return noise interpolated linearly between normal numbers at the integer lattice points.

    Args:
        inline: positions in lattice cells, float64, broadcast against the other two.
        crossline: as `inline`.
        sample: as `inline`.
        stream: seed and stream numbers.
    """
    floors = [np.floor(axis) for axis in (inline, crossline, sample)]
    corners = [floor.astype(np.int64) for floor in floors]
    weights = [
        (axis - floor).astype(np.float32) for axis, floor in zip((inline, crossline, sample), floors, strict=True)
    ]
    total = np.zeros(np.broadcast_shapes(inline.shape, crossline.shape, sample.shape), np.float32)
    for offset in np.ndindex(2, 2, 2):
        corner = normal(*stream, *(cell + step for cell, step in zip(corners, offset, strict=True)))
        for weight, step in zip(weights, offset, strict=True):
            corner = corner * (weight if step else np.float32(1) - weight)
        total += corner
    return total


def _finalise(state: Keys) -> Keys:
    state = (state ^ (state >> np.uint64(30))) * _MIX_A
    state = (state ^ (state >> np.uint64(27))) * _MIX_B
    return state ^ (state >> np.uint64(31))
