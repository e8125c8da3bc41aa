"""How far a network's output depends on its input: measured on the network itself, by structure, not by values.

A gradient of the trained network underestimates the reach: a ReLU that happens to be off and a max-pool that chose
another cell hide paths. So a double with the same wiring is measured: positive weights, no bias, no rectifier,
average- for max-pooling, batch norm (a fixed scaling in evaluation) left out. There every path adds, and none can
cancel. Norms over the patch become a sum over the patch, which shows as reach that grows with it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from geobatch.blocks import Grid, Halo, smallest_patch
from geobatch.errors import MismatchError

LONGEST_PROBE = 512
TOLERANCE = 1e-10
_IDENTITIES = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Tanh,
    nn.PReLU,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
)
_PATCH_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm, nn.LayerNorm)
_AVERAGE_POOLS: dict[type[nn.Module], type[nn.Module]] = {
    nn.MaxPool1d: nn.AvgPool1d,
    nn.MaxPool2d: nn.AvgPool2d,
    nn.MaxPool3d: nn.AvgPool3d,
}


@dataclass(frozen=True)
class Reach:
    """The measured reach of a network.

    Attributes:
        stride: Total stride per axis: the period of its position dependence.
        by_phase: Per axis and output phase modulo the stride, cells before and after that the output depends on.
        halo: Per axis, cells lost before and after inside a patch with stride-aligned edges.
    """

    stride: tuple[int, ...]
    by_phase: tuple[Halo, ...]
    halo: Halo


def measure_reach(network: nn.Module, in_channels: int, stride: tuple[int, ...]) -> Reach:
    """The reach of `network` per axis and phase, and the halo it needs.

    Args:
        network: Takes `(batch, channel, *axes)`, returns `(batch, class, *axes)` of the same lengths.
        in_channels: Channels of its input.
        stride: Total stride per axis, as the architecture states it; `check_tiling` tests it.

    Raises:
        MismatchError: the output depends on the whole patch, however long.
    """
    double = _structural_double(network)
    by_phase = tuple(_axis_reach(double, in_channels, stride, axis) for axis in range(len(stride)))
    halo = tuple(_aligned_halo(phases, s) for phases, s in zip(by_phase, stride, strict=True))
    return Reach(stride, by_phase, halo)


def check_tiling(network: nn.Module, in_channels: int, reach: Reach) -> float:
    """The largest deviation of tiled from whole output, relative to the largest, for every size modulo the stride.

    The network's own weights are used, in float64, along each axis in turn.

    Raises:
        MismatchError: the deviation is above 1e-10: structure alone did not see everything.
    """
    network = copy.deepcopy(network).double().eval()
    worst = 0.0
    for axis, stride in enumerate(reach.stride):
        patch = smallest_patch(stride, reach.halo[axis]) + stride
        for residue in range(stride):
            lengths = [s + 1 for s in reach.stride]
            lengths[axis] = patch * 2 + residue
            worst = float(np.maximum(worst, _tiling_deviation(network, in_channels, reach, axis, patch, lengths)))
    if not worst <= TOLERANCE:
        raise MismatchError(
            "tiled prediction differs from the whole although the halo is the measured reach",
            where=type(network).__name__,
            measured=f"relative deviation {worst:.1e}",
            limit=f"{TOLERANCE:.0e}",
            remedy="The network depends on the patch's size or position: it cannot be scored in halo mode.",
        )
    return worst


def _structural_double(network: nn.Module) -> nn.Module:
    """The same wiring with every path positive and linear."""
    double = copy.deepcopy(network).double().eval()
    for name, module in list(double.named_modules()):
        if isinstance(module, _IDENTITIES):
            _replace(double, name, nn.Identity())
        elif isinstance(module, _PATCH_NORMS):
            _replace(double, name, _SumOverPatch())
        elif type(module) in _AVERAGE_POOLS:
            _replace(double, name, _average_pool(module))
    with torch.no_grad():
        for name, parameter in double.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.fill_(1.0 / max(parameter[0].numel(), 1))
    return double.requires_grad_(False)


class _SumOverPatch(nn.Module):
    """Stands for a norm whose statistics come from the patch."""

    def forward(self, x_BC: torch.Tensor) -> torch.Tensor:
        axes = tuple(range(2, x_BC.dim()))
        return x_BC + x_BC.mean(dim=axes, keepdim=True)


def _average_pool(pool: Any) -> nn.Module:
    return _AVERAGE_POOLS[type(pool)](
        pool.kernel_size, stride=pool.stride, padding=pool.padding, ceil_mode=pool.ceil_mode
    )


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent_name, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent_name), child, module)


def _axis_reach(double: nn.Module, in_channels: int, stride: tuple[int, ...], axis: int) -> Halo:
    """Cells before and after, for each output phase along one axis; the probe grows until its edges are not touched."""
    period = stride[axis]
    length = 16 * period
    while length <= LONGEST_PROBE:
        centre = length // 2 // period * period
        phases = [_support(double, in_channels, stride, axis, length, centre + phase) for phase in range(period)]
        if all(first > 0 and last < length - 1 for first, last in phases):
            return tuple((centre + k - first, last - centre - k) for k, (first, last) in enumerate(phases))
        length *= 2
    raise MismatchError(
        "the network's output depends on its whole patch",
        where=f"axis {axis}",
        measured=f"reach beyond {LONGEST_PROBE // 2} cells",
        limit="a bounded reach, for halo mode",
        remedy="Replace norms over the patch by batch norm, and attention over it by one of bounded reach.",
    )


def _support(
    double: nn.Module, in_channels: int, stride: tuple[int, ...], axis: int, length: int, plane: int
) -> tuple[int, int]:
    """First and last input cell along `axis` that one output plane depends on."""
    lengths = [s + 1 for s in stride]
    lengths[axis] = length
    x_BC = torch.ones((1, in_channels, *lengths), dtype=torch.float64, requires_grad=True)
    output = double(x_BC)
    (gradient,) = torch.autograd.grad(output.select(axis + 2, plane).sum(), x_BC)
    others = [d for d in range(gradient.dim()) if d != axis + 2]
    cells = torch.nonzero(gradient.abs().sum(dim=others)).flatten()
    return int(cells[0]), int(cells[-1])


def _aligned_halo(phases: Halo, stride: int) -> tuple[int, int]:
    """Cells lost at a patch edge that is a multiple of the stride."""
    longest = max(max(pair) for pair in phases) + 1
    before = [cell + 1 for cell in range(longest) if cell < phases[cell % stride][0]]
    after = [cell + 1 for cell in range(longest) if cell < phases[(-1 - cell) % stride][1]]
    return (max(before, default=0), max(after, default=0))


@torch.no_grad()
def _tiling_deviation(
    network: nn.Module, in_channels: int, reach: Reach, axis: int, patch: int, lengths: list[int]
) -> float:
    axes = len(lengths)
    patches = tuple(
        patch if a == axis else -(-n // s) * s for a, (n, s) in enumerate(zip(lengths, reach.stride, strict=True))
    )
    no_reach = ((0, 0),) * axes
    grid = Grid(tuple(lengths), tuple(lengths), patches, reach.stride, reach.halo, no_reach)
    generator = torch.Generator().manual_seed(0)
    x_BC = torch.randn((1, in_channels, *lengths), dtype=torch.float64, generator=generator)
    whole = network(x_BC)
    if not torch.isfinite(whole).all():
        raise MismatchError(
            "the network returns no finite number", where=type(network).__name__, remedy="Train it again."
        )
    worst = 0.0
    for part in grid.patches(grid.block((0,) * axes).write):
        seen = network(x_BC[(slice(None), slice(None), *part.see)])
        inside = tuple(slice(k.start - s.start, k.stop - s.start) for k, s in zip(part.keep, part.see, strict=True))
        worst = max(
            worst,
            float(
                (seen[(slice(None), slice(None), *inside)] - whole[(slice(None), slice(None), *part.keep)]).abs().max()
            ),
        )
    return worst / max(float(whole.abs().max()), 1e-300)
