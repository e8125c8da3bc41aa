"""How far a network's output depends on its input: measured on the network itself, by structure, not by values.

A gradient of the trained network underestimates the reach: a ReLU that happens to be off and a max-pool that chose
another cell hide paths. So single input planes are followed through the network's wiring (`models/dependence.py`).
Where the outputs that depend on a plane reach the end of every probe, however long, the axis counts as unbounded.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from geobatch.blocks import Grid, Halo, smallest_patch
from geobatch.errors import MismatchError
from geobatch.models.dependence import DependenceMode, WholeDependenceError, is_marked, mark

LONGEST_PROBE = 512
LONGEST_PROBE_STRIDES = 64
TOLERANCE = 1e-10
Lengths = tuple[int, ...]


@dataclass(frozen=True)
class Reach:
    """The measured reach of a network.

    Attributes:
        stride: Total stride per axis: the period of its position dependence.
        by_phase: Per axis and output phase modulo the stride, cells before and after that the output depends on.
        halo: Per axis, cells lost before and after inside a patch with stride-aligned edges.
        unbounded: Numbers of the axes along which the output depends on the whole patch, or on its size or place;
            their entries in `by_phase` and `halo` are zeros that mean nothing.
    """

    stride: tuple[int, ...]
    by_phase: tuple[Halo, ...]
    halo: Halo
    unbounded: tuple[int, ...] = ()


def measure_reach(network: nn.Module, in_channels: int, stride: tuple[int, ...]) -> Reach:
    """The reach of `network` per axis and phase, and the halo it needs.

    Args:
        network: Takes `(batch, channel, *axes)`, returns `(batch, class, *axes)` of the same lengths.
        in_channels: Channels of its input.
        stride: Total stride per axis, as the architecture states it; `verified_reach` tests it.

    Raises:
        MismatchError: the network takes no patch of a few strides per axis.
    """
    network = copy.deepcopy(network).float().eval()
    around = _least_lengths(network, in_channels, stride)
    found = [_axis_reach(network, in_channels, stride, around, axis) for axis in range(len(stride))]
    by_phase = tuple(phases or ((0, 0),) * s for phases, s in zip(found, stride, strict=True))
    halo = tuple(_aligned_halo(phases, s) for phases, s in zip(by_phase, stride, strict=True))
    unbounded = tuple(axis for axis, phases in enumerate(found) if phases is None)
    return Reach(stride, by_phase, halo, unbounded)


def verified_reach(network: nn.Module, in_channels: int, stride: tuple[int, ...]) -> tuple[Reach, float]:
    """The measured reach and the worst deviation of tiled from whole output, relative to the largest logit.

    Structure does not see everything, such as resizing to a given size. An axis whose deviation exceeds 1e-10 for any
    size modulo the stride counts as unbounded.

    Raises:
        MismatchError: the network returns no finite number, or takes no patch of a few strides per axis.
    """
    reach = measure_reach(network, in_channels, stride)
    deviations = tiling_deviations(network, in_channels, reach)
    failing = {axis for axis, deviation in enumerate(deviations) if not deviation <= TOLERANCE}
    unbounded = tuple(sorted({*reach.unbounded, *failing}))
    halo = tuple((0, 0) if axis in unbounded else pair for axis, pair in enumerate(reach.halo))
    return replace(reach, halo=halo, unbounded=unbounded), max(d for d in (0.0, *deviations) if d <= TOLERANCE)


def whole_input(stride: tuple[int, ...]) -> Reach:
    """The reach of a network that answers once: its output depends on all of its input."""
    by_phase = tuple(((0, 0),) * period for period in stride)
    return Reach(stride, by_phase, ((0, 0),) * len(stride), unbounded=tuple(range(len(stride))))


def tiling_deviations(network: nn.Module, in_channels: int, reach: Reach) -> tuple[float, ...]:
    """Per axis, how far tiled and whole output differ, relative to the largest, over every size modulo the stride.

    The network's own weights are used, in float64, along each bounded axis in turn; an unbounded one has 0.

    Raises:
        MismatchError: the network returns no finite number.
    """
    around = _least_lengths(copy.deepcopy(network).float().eval(), in_channels, reach.stride)
    network = copy.deepcopy(network).double().eval()
    worst = [0.0] * len(reach.stride)
    for axis, stride in enumerate(reach.stride):
        patch = smallest_patch(stride, reach.halo[axis]) + stride
        for residue in range(stride if axis not in reach.unbounded else 0):
            lengths = (*around[:axis], patch * 2 + residue, *around[axis + 1 :])
            deviation = _tiling_deviation(network, in_channels, reach, axis, patch, lengths)
            worst[axis] = max(worst[axis], deviation)
    return tuple(worst)


def _least_lengths(network: nn.Module, in_channels: int, stride: tuple[int, ...]) -> Lengths:
    """The smallest patch of some strides and a cell that the network takes; padding by reflection needs some cells."""
    failure: Exception | None = None
    for strides in (1, 2, 4, 8):
        lengths = tuple(strides * s + 1 for s in stride)
        try:
            with torch.no_grad():
                network(torch.zeros((1, in_channels, *lengths)))
        except (RuntimeError, ValueError) as error:
            failure = error
        else:
            return lengths
    raise MismatchError(
        "the network takes no patch of a few strides per axis",
        where=type(network).__name__,
        measured=str(failure),
        limit=f"(batch, {in_channels}, *axes), stride {stride}",
        remedy="State its total stride, and let it take any size.",
    ) from failure


def _axis_reach(
    network: nn.Module, in_channels: int, stride: tuple[int, ...], around: Lengths, axis: int
) -> Halo | None:
    """Cells before and after, for each output phase along one axis; None when no probe is long enough."""
    period = stride[axis]
    length = 16 * period
    while length <= max(LONGEST_PROBE, LONGEST_PROBE_STRIDES * period):
        lengths = (*around[:axis], length, *around[axis + 1 :])
        centre = length // 2 // period * period
        reached = [(0, 0)] * period
        for plane in range(centre, centre + period):
            outputs = _dependent_planes(network, in_channels, lengths, axis, plane)
            if outputs and (outputs[0] == 0 or outputs[-1] == length - 1):
                break
            for output in outputs:
                before, after = reached[output % period]
                reached[output % period] = (max(before, output - plane), max(after, plane - output))
        else:
            return tuple(reached)
        length *= 2
    return None


def _dependent_planes(network: nn.Module, in_channels: int, lengths: Lengths, axis: int, plane: int) -> list[int]:
    """The output planes along `axis`, ascending, that depend on one input plane; all of them where it cannot be told.

    Raises:
        MismatchError: the output has other lengths than the input.
    """
    x_BC = torch.zeros((1, in_channels, *lengths))
    x_BC.select(axis + 2, plane).fill_(1)
    try:
        with torch.no_grad(), _plain_operations(), DependenceMode():  # type: ignore[no-untyped-call]
            output = network(mark(x_BC))
    except (WholeDependenceError, RuntimeError):
        # The network itself runs at such lengths, so it is the marks that it does not take.
        return list(range(lengths[axis]))
    if not is_marked(output):
        return list(range(lengths[axis]))
    if tuple(output.shape[2:]) != lengths:
        raise MismatchError(
            "the network's output is of another size than its input",
            where=type(network).__name__,
            measured=tuple(output.shape[2:]),
            limit=lengths,
        )
    others = [d for d in range(output.dim()) if d != axis + 2]
    return torch.nonzero(output.amax(others)).flatten().tolist()


@contextmanager
def _plain_operations() -> Iterator[None]:
    """Attention and recurrence as matrix products; the fused kernels say nothing of what they couple."""
    attention, recurrence = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(attention)
        torch.backends.mkldnn.enabled = recurrence


def _aligned_halo(phases: Halo, stride: int) -> tuple[int, int]:
    """Cells lost at a patch edge that is a multiple of the stride."""
    longest = max(max(pair) for pair in phases) + 1
    before = [cell + 1 for cell in range(longest) if cell < phases[cell % stride][0]]
    after = [cell + 1 for cell in range(longest) if cell < phases[(-1 - cell) % stride][1]]
    return (max(before, default=0), max(after, default=0))


@torch.no_grad()
def _tiling_deviation(
    network: nn.Module, in_channels: int, reach: Reach, axis: int, patch: int, lengths: Lengths
) -> float:
    axes = len(lengths)
    patches = tuple(
        patch if a == axis else -(-n // s) * s for a, (n, s) in enumerate(zip(lengths, reach.stride, strict=True))
    )
    no_reach = ((0, 0),) * axes
    grid = Grid(lengths, lengths, patches, reach.stride, reach.halo, no_reach)
    generator = torch.Generator().manual_seed(0)
    x_BC = torch.randn((1, in_channels, *lengths), dtype=torch.float64, generator=generator)
    whole = network(x_BC)
    if not torch.isfinite(whole).all():
        raise MismatchError(
            "the network returns no finite number", where=type(network).__name__, remedy="Train it again."
        )
    everything = grid.block((0,) * axes).write
    # Of blocks that begin anywhere, this one begins nearest to the start of its first patch.
    nearest = slice(reach.stride[axis] + reach.halo[axis][0], lengths[axis])
    first, *_ = grid.patches((*everything[:axis], nearest, *everything[axis + 1 :]))
    worst = 0.0
    for part in (first, *grid.patches(everything)):
        seen = network(x_BC[(slice(None), slice(None), *part.see)])
        inside = tuple(slice(k.start - s.start, k.stop - s.start) for k, s in zip(part.keep, part.see, strict=True))
        worst = max(
            worst,
            float(
                (seen[(slice(None), slice(None), *inside)] - whole[(slice(None), slice(None), *part.keep)]).abs().max()
            ),
        )
    return worst / max(float(whole.abs().max()), 1e-300)
