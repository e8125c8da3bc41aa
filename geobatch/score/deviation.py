"""How far a cheaper prediction is from the exact one, measured on the network with real samples of the survey.

A patch edge inside the survey spoils the cells near it, less the farther they are from it. One forward pass over a
region, and one over the same region cut at a stride-aligned cell, give the deviation at every distance from a cut:

    region ├──────────────────────────────┤
    cut              ├────────────────────┤
    distance         0 1 2 …  deviation falls

The smallest halo is the distance from which on no deviation exceeds the tolerance, so that all larger halos pass too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from geobatch.blocks import Halo, rounded_up
from geobatch.score.predictor import Precision

CELLS_MEASURED = 2**19
LEAST_SHARE = 2**-10
Values = npt.NDArray[np.float32]
TakeSamples = Callable[[tuple[int, ...]], Sequence[Values]]
"""Samples of the prepared survey of the given lengths, every cell finite."""


@dataclass(frozen=True)
class Tolerated:
    """A halo smaller than the network's reach, and the largest deviation of a logit with it over the largest logit."""

    halo: Halo
    deviation: float


@dataclass(frozen=True)
class Cut:
    """Deviations over the largest logit, by distance from a cut, on both sides of one axis."""

    before: tuple[float, ...]
    after: tuple[float, ...]

    def halo(self, tolerance: float, exact: tuple[int, int]) -> tuple[int, int]:
        """The smallest distances from which on no deviation exceeds the tolerance; nothing is known beyond the last."""
        return _smallest(self.before, tolerance, exact[0]), _smallest(self.after, tolerance, exact[1])


def tolerated_halo(
    network: nn.Module,
    take_samples: TakeSamples,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    exact: Halo,
    tolerance: float,
) -> Tolerated:
    """The smallest halo whose measured worst deviation stays below the tolerance.

    Each axis is cut alone first. Where patches cut along all axes deviate more than the tolerance, since deviations
    add up, the axes get half of it, and so on; what they deviate in the end is returned.

    Args:
        network: In evaluation mode, float32, on the CPU.
        take_samples: Gives samples of the survey and noise like it.
        shape: Cells of the survey.
        stride: Total stride.
        exact: The halo that loses nothing.
        tolerance: Largest deviation of a logit over the largest logit.
    """
    cuts = [
        _measured_cut(network, take_samples, shape, stride, exact, axis) if any(exact[axis]) else Cut((), ())
        for axis in range(len(shape))
    ]
    share = 1.0
    while share >= LEAST_SHARE:
        halo = tuple(cut.halo(tolerance * share, pair) for cut, pair in zip(cuts, exact, strict=True))
        deviation = patch_deviation(network, take_samples, shape, stride, exact, halo)
        if deviation <= tolerance:
            return Tolerated(halo, deviation)
        share /= 2
    return Tolerated(exact, 0.0)


@torch.inference_mode()
def patch_deviation(
    network: nn.Module,
    take_samples: TakeSamples,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    exact: Halo,
    halo: Halo,
) -> float:
    """The largest deviation in the kept part of a patch cut along every axis, over the largest logit."""
    sides = []
    for n, s, pair, short in zip(shape, stride, exact, halo, strict=True):
        patch = rounded_up(sum(short) + 2 * s, s)
        sides.append((patch, rounded_up(max(pair), s)) if any(pair) and patch < n else (n, 0))
    sides = _within_budget(sides, stride)
    worst = 0.0
    for sample in take_samples(tuple(min(n, p + 2 * c) for n, (p, c) in zip(shape, sides, strict=True))):
        see, keep, inside = [], [], []
        for (patch, around), length, s, short in zip(sides, sample.shape, stride, halo, strict=True):
            start = min(around, (length - patch) // 2 // s * s) if length > patch else 0
            stop = min(start + patch, length)
            first = start + (short[0] if start else 0)
            last = stop - (short[1] if stop < length else 0)
            see.append(slice(start, stop))
            keep.append(slice(first, last))
            inside.append(slice(first - start, last - start))
        whole = _logits(network, sample)
        part = _logits(network, sample[tuple(see)])
        deviation = (part[(slice(None), *inside)] - whole[(slice(None), *keep)]).abs().max()
        worst = max(worst, float(deviation / whole.abs().max().clamp(min=1e-30)))
    return worst


@torch.inference_mode()
def _measured_cut(
    network: nn.Module,
    take_samples: TakeSamples,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    exact: Halo,
    axis: int,
) -> Cut:
    """Deviations along one axis, the worst of all samples and of cuts at a third, a half and two thirds of them."""
    longest = rounded_up(max(exact[axis]), stride[axis])
    sides = [rounded_up(max(pair), s) if any(pair) else n for n, pair, s in zip(shape, exact, stride, strict=True)]
    sides[axis] = 3 * longest + 2 * stride[axis]
    lengths = _prism([min(n, side) for n, side in zip(shape, sides, strict=True)], stride, axis)
    before, after = np.zeros(exact[axis][0]), np.zeros(exact[axis][1])
    seen_before = seen_after = 0
    for sample in take_samples(lengths):
        whole = _logits(network, sample)
        scale = whole.abs().max().clamp(min=1e-30)
        for cell in _cuts(sample.shape[axis], stride[axis]):
            for side, profile in (("before", before), ("after", after)):
                kept = slice(cell, None) if side == "before" else slice(0, cell)
                index = (slice(None),) * axis + (kept,)
                deviation = (_logits(network, sample[index]) - whole[(slice(None), *index)]).abs() / scale
                others = [d for d in range(deviation.dim()) if d != axis + 1]
                by_distance = deviation.amax(others).numpy()[:: 1 if side == "before" else -1][: len(profile)]
                np.maximum(profile[: len(by_distance)], by_distance, out=profile[: len(by_distance)])
                if side == "before":
                    seen_before = max(seen_before, len(by_distance))
                else:
                    seen_after = max(seen_after, len(by_distance))
    return Cut(tuple(before[:seen_before]), tuple(after[:seen_after]))


def precision_deviation(network: nn.Module, sample: Values, precision: Precision) -> tuple[float, float]:
    """Of one patch in lower precision against float32, on the CPU.

    Returns:
        The largest deviation of a logit over the largest logit, and the part of cells whose class changes.
    """
    with torch.inference_mode():
        exact = _logits(network, sample)
        with torch.autocast("cpu", dtype=getattr(torch, precision)):
            coarse = _logits(network, sample).float()
    deviation = (coarse - exact).abs().max() / exact.abs().max().clamp(min=1e-30)
    changed = (coarse.argmax(0) != exact.argmax(0)).float().mean()
    return float(deviation), float(changed)


def _logits(network: nn.Module, sample: Values) -> torch.Tensor:
    logits: torch.Tensor = network(torch.from_numpy(np.ascontiguousarray(sample))[None, None])[0]
    return logits


def _smallest(profile: Sequence[float], tolerance: float, exact: int) -> int:
    if len(profile) < exact:
        return exact
    above = np.flatnonzero(np.asarray(profile) > tolerance)
    return int(above[-1]) + 1 if above.size else 0


def _cuts(length: int, stride: int) -> Iterator[int]:
    """Stride-aligned cells at a third, a half and two thirds of an axis."""
    yield from sorted({cell for part in (1 / 3, 1 / 2, 2 / 3) if (cell := int(length * part) // stride * stride) > 0})


def _prism(lengths: list[int], stride: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """The lengths, shortened across the axis to the cells that are measured."""
    others = [a for a in range(len(lengths)) if a != axis]
    if not others:
        return tuple(lengths)
    width = int((CELLS_MEASURED / lengths[axis]) ** (1 / len(others)))
    for a in others:
        lengths[a] = min(lengths[a], max(width // stride[a] * stride[a], stride[a]))
    return tuple(lengths)


def _within_budget(sides: list[tuple[int, int]], stride: tuple[int, ...]) -> list[tuple[int, int]]:
    """Patch lengths and the context around them, the context shortened to twice the cells that are measured."""
    part = 1.0
    while part > 0:
        shortened = [(p, int(c * part) // s * s) for (p, c), s in zip(sides, stride, strict=True)]
        if math.prod(p + 2 * c for p, c in shortened) <= 2 * CELLS_MEASURED:
            return shortened
        part = round(part - 0.1, 1)
    return [(p, min(c, s)) for (p, c), s in zip(sides, stride, strict=True)]
